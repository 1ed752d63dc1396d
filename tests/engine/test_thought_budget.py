"""Budgets of thoughts in the engine: alone, beside others, preempted, in chunks, and with all that shapes tokens."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.tokenizer import Tokenizer, load_tokenizer
from plimsoll.runtime.engine.core.sampling_params import ThoughtBudget
from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.llm import LLM, SamplingParams
from plimsoll.runtime.vocabulary import vocabulary_of
from tests.support.engines import make_engine, make_request, run, run_alone
from tests.support.thinker import ANSWER, BEGIN, END, THOUGHT, make_thinker

BLOCK_BYTES = 2 * 2 * 2 * 16 * 4 * 16
GRAMMAR = f'start: <[{BEGIN}]> thought /\\n{{0,2}}/ "[" /[0-9]{{3}}/ "]"\nthought: TEXT <[{END}]>\nTEXT: /(.|\\n)*/\n'


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_thinker(tmp_path_factory.mktemp("engine") / "thinker")


@pytest.fixture(scope="module")
def tokenizer(thinker: Path) -> Tokenizer:
    return load_tokenizer(open_checkpoint(thinker))


def build(model: Path, tokenizer: Tokenizer, **options: Any) -> Engine:
    engine = make_engine(model, **({"num_blocks": 32, "block_bytes": BLOCK_BYTES, "max_model_len": 128} | options))
    engine.learn(vocabulary_of(tokenizer))
    return engine


@pytest.fixture(scope="module")
def engine(thinker: Path, tokenizer: Tokenizer) -> Engine:
    return build(thinker, tokenizer)


def budget(tokenizer: Tokenizer, tokens: int, **more: Any) -> ThoughtBudget:
    return msgspec.structs.replace(
        ThoughtBudget(tokens=tokens, begins=("<think>",), end="</think>", close=tuple(tokenizer.encode("</think>"))),
        **more,
    )


def text(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    return b"".join(tokenizer.token_bytes(token) for token in token_ids).decode()


def closed(tokens: int) -> str:
    """What the model answers with a budget of so many tokens."""
    return f"<think>{THOUGHT[:tokens]}</think>\n{ANSWER}"


@pytest.mark.parametrize("tokens", [0, 1, 4, 8, 9, 50])
def test_a_thought_is_closed_at_its_budget_and_the_answer_follows(engine, tokenizer, tokens) -> None:
    request = make_request("a", tokenizer.encode("hello>"), 60, thought=budget(tokenizer, tokens), ignore_eos=False)
    result = run_alone(engine, request)
    assert (text(tokenizer, result.token_ids), result.finish_reason) == (closed(tokens), "stop")


def test_what_shapes_tokens_neither_forbids_the_closing_nor_is_changed_by_it(engine, tokenizer) -> None:
    [letter, new_line] = tokenizer.encode("a\n")
    shaped: list[dict[str, Any]] = [
        {"logit_bias": {END: -100.0, letter: 1.0}}, {"allowed_token_ids": (BEGIN, letter)},
        {"bad_words": ((END,), (new_line,))}, {"repetition_penalty": 3.0, "frequency_penalty": 2.0},
        {"temperature": 1.5, "seed": 3, "top_p": 0.5}, {"logprobs": 2}, {"min_tokens": 12},
    ]  # fmt: skip
    thought = budget(tokenizer, 3, open=True)
    prompt = tokenizer.encode("hello><think>")
    requests = [make_request(i, prompt, 12, thought=thought, **more) for i, more in enumerate(shaped)]
    plain = [make_request(f"p{i}", prompt, 12, **more) for i, more in enumerate(shaped)]
    together = run(engine, [*requests, *plain])
    for request, other in zip(requests, plain, strict=True):
        result, free = together[request.request_id], together[other.request_id]
        assert result.error is None
        assert result.token_ids[:3] == free.token_ids[:3]
        assert result.token_ids[3:4] == [END]
        assert run_alone(engine, other).token_ids == free.token_ids
        if request.params.logprobs is not None:
            assert [entry.chosen.token_id for entry in result.logprobs] == result.token_ids


def test_a_grammar_goes_on_after_the_forced_end(engine, tokenizer) -> None:
    for tokens in (0, 2, 5):
        request = make_request(
            "a", tokenizer.encode("hello>"), 60, thought=budget(tokenizer, tokens), grammar=GRAMMAR, ignore_eos=False
        )
        result = run_alone(engine, request)
        said = text(tokenizer, result.token_ids)
        assert (result.finish_reason, result.error) == ("stop", None)
        assert said.startswith(closed(tokens).removesuffix(ANSWER))
        assert said[-5] + said[-1] == "[]"
        assert said[-4:-1].isdigit()


@pytest.mark.parametrize("options", [{"num_blocks": 9, "max_model_len": 96}, {"max_batched_tokens": 16}])
def test_preempted_and_chunked_requests_close_their_thoughts_where_others_do(thinker, tokenizer, options) -> None:
    small = build(thinker, tokenizer, **options)
    prompt = tokenizer.encode("Naïve café.>")
    requests = [make_request(i, [i + 4, *prompt] * 2, 60, thought=budget(tokenizer, i)) for i in range(8)]
    together = run(small, requests)
    assert small.stats.preemptions or "num_blocks" not in options
    for i, request in enumerate(requests):
        assert text(tokenizer, together[request.request_id].token_ids).startswith(closed(i))


def test_a_budget_that_cannot_be_run_ends_its_own_request(engine, tokenizer, thinker) -> None:
    for wrong in ({"close": (9999,)}, {"close": ()}, {"tokens": -1}, {"end": ""}):
        given = budget(tokenizer, **({"tokens": 1} | wrong))
        bad, good = make_request("bad", [5], thought=given), make_request("good", [5], 2)
        results = run(engine, [bad, good])
        assert (results["bad"].finish_reason, results["good"].finish_reason) == ("rejected", "length")
        assert "thought" in (results["bad"].error or "")
    untaught = make_engine(thinker, num_blocks=32, block_bytes=BLOCK_BYTES, max_model_len=128)
    assert "no vocabulary" in (run_alone(untaught, make_request("a", [5], thought=budget(tokenizer, 1))).error or "")


def test_the_class_for_programs_takes_a_budget(thinker, tokenizer) -> None:
    llm = LLM(str(thinker), precision="float32", kv_cache_bytes=32 * BLOCK_BYTES, block_size=16, threads=1)
    params = SamplingParams(max_tokens=40, temperature=0.0, thought=budget(tokenizer, 3), skip_special_tokens=False)
    [answer] = llm.generate("hello>", params)
    assert answer.outputs[0].text.startswith(closed(3))
