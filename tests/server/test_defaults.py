"""What a checkpoint recommends: where answers end and how they are sampled, in the library and behind HTTP."""

import json
import logging
from pathlib import Path

import pytest

from plimsoll import LLM, SamplingParams
from plimsoll.runtime.sampling_defaults import DEFAULTED, sampling_defaults
from tests.support.checkpoints import END_OF_TEXT, TURN_END, make_checkpoint
from tests.support.endpoint import SMALL, serving

HELLO = [{"role": "user", "content": "hello"}]
#: Makes the end of a turn the likeliest token by far.
TO_THE_END = {TURN_END: 100.0}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both configurations end at <|endoftext|>, the tokenizer at <|im_end|>; one sampling default is no number."""
    folder = make_checkpoint(tmp_path_factory.mktemp("defaults") / "mixed", eos_token_id=END_OF_TEXT)
    written = {"eos_token_id": END_OF_TEXT, "temperature": 0.6, "top_p": 1.5, "top_k": 20, "min_p": "none"}
    (folder / "generation_config.json").write_text(json.dumps(written))
    return folder


def test_the_library_ends_at_the_tokenizers_end_and_keeps_usable_defaults(
    mixed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), LLM(mixed, **SMALL) as llm:
        (result,) = llm.chat(HELLO, SamplingParams(max_tokens=8, logit_bias=TO_THE_END))
        chosen = llm.default_params()
        assert llm.generate("x")[0].outputs[0].error is None
    assert (result.outputs[0].finish_reason, result.outputs[0].token_ids) == ("stop", [])
    assert (chosen.temperature, chosen.top_k, chosen.top_p, chosen.min_p) == (0.6, 20, 1.0, 0.0)
    for name in ("top_p '1.5' is not used", "min_p 'none' is not used"):
        assert name in caplog.text


def test_the_server_ends_at_the_tokenizers_end_and_keeps_usable_defaults(mixed: Path) -> None:
    with serving(mixed) as endpoint:
        bias = {str(token): value for token, value in TO_THE_END.items()}
        status, answer = endpoint.post("/v1/chat/completions", {
            "model": endpoint.model, "messages": HELLO, "max_tokens": 8, "logit_bias": bias,
        })  # fmt: skip
        assert (status, answer["choices"][0]["finish_reason"]) == (200, "stop")
        assert answer["choices"][0]["message"]["content"] in ("", None)
        assert endpoint.service.serving.defaults == {"temperature": 0.6, "top_k": 20}


@pytest.mark.parametrize("name", DEFAULTED)
@pytest.mark.parametrize("wrong", ["x", True, [1], {}, -5, 1e12, float("nan"), 10**400])
def test_one_unusable_value_drops_itself_alone_and_is_named(name: str, wrong: object) -> None:
    usable = {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1}
    found, notices = sampling_defaults(usable | {name: wrong, "eos_token_id": 2, "do_sample": True})
    assert found == {key: value for key, value in usable.items() if key != name}
    assert len(notices) == 1
    assert f"{name} {str(wrong)[:80]!r} is not used" in notices[0]


def test_usable_spellings_of_defaults() -> None:
    assert sampling_defaults({"temperature": "0.5", "top_k": -1, "top_p": None}) == (
        {"temperature": 0.5, "top_k": 0}, (),
    )  # fmt: skip
    assert sampling_defaults({"top_k": 50.0}) == ({"top_k": 50}, ())
