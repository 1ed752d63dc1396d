"""What cannot change an answer is accepted in every spelling that clients use; what could is refused with a way out."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from plimsoll.runtime.server import openapi
from tests.support.endpoint import Endpoint

HELLO = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 4, "temperature": 0.0, "ignore_eos": True}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "hi", "max_tokens": 4, "temperature": 0.0, "ignore_eos": True}

#: The bodies that LMDeploy's APIClient sends, its own empty `kwargs` included.
LMDEPLOY_CHAT = {
    "model": "tiny", "messages": HELLO, "temperature": 0.7, "top_p": 1.0, "logprobs": False, "top_logprobs": 0, "n": 1,
    "max_completion_tokens": None, "max_tokens": 4, "stop": None, "stream": False, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "user": None, "repetition_penalty": 1.0, "session_id": -1, "ignore_eos": False,
    "skip_special_tokens": True, "spaces_between_special_tokens": True, "top_k": 40, "seed": None,
    "min_new_tokens": None, "min_p": 0.0, "enable_thinking": None, "return_token_ids": False,
    "include_stop_str_in_output": False, "kwargs": {},
}  # fmt: skip
LMDEPLOY_TEXT = {
    "model": "tiny", "prompt": "hi", "suffix": None, "temperature": 0.7, "n": 1, "max_completion_tokens": 4,
    "max_tokens": 4, "stream": False, "stop": None, "top_p": 1.0, "top_k": 40, "user": None,
    "repetition_penalty": 1.0, "session_id": -1,
    "ignore_eos": False, "skip_special_tokens": True, "spaces_between_special_tokens": True, "kwargs": {},
}  # fmt: skip


def said(endpoint: Endpoint, path: str, body: dict[str, Any]) -> dict[str, Any]:
    status, answer = endpoint.post(path, body)
    assert status == 200, answer
    choices: list[dict[str, Any]] = answer["choices"]
    return choices[0]


@pytest.mark.parametrize("penalty", [1e-9, 1e-7, 1e9])
def test_any_penalty_above_zero_is_one(tiny: Endpoint, penalty: float) -> None:
    assert said(tiny, "/v1/completions", TEXT | {"repetition_penalty": penalty, "logprobs": 1})["text"]


def test_the_requests_of_lmdeploys_client_are_answered(tiny: Endpoint) -> None:
    said(tiny, "/v1/chat/completions", LMDEPLOY_CHAT)
    said(tiny, "/v1/completions", LMDEPLOY_TEXT)


@pytest.mark.parametrize(
    "extra",
    [
        {"use_beam_search": False}, {"echo": False}, {"bad_words": []}, {"priority": 0}, {"top_logprobs": 0},
        {"spaces_between_special_tokens": True}, {"spaces_between_special_tokens": False}, {"length_penalty": 1.0},
        {"early_stopping": False}, {"best_of": 1}, {"include_reasoning": True}, {"add_special_tokens": False},
        {"documents": []}, {"logits_processors": []}, {"return_tokens_as_token_ids": False}, {"session_id": 7},
        {"prompt_cache_retention": "24h"}, {"prompt_cache_options": {"mode": "explicit", "ttl": "30m"}},
        {"moderation": {"model": "omni-moderation-latest"}}, {"mm_processor_kwargs": {}}, {"do_sample": True},
        {"moderation": {"model": "m", "policy": {"output": {"mode": "score"}}}}, {"min_new_tokens": 0},
        {"cache_prompt": True}, {"typical_p": 1.0},
        {"max_tokens": 4.0}, {"max_tokens": "4"}, {"temperature": "0.0"}, {"temperature": "0"}, {"top_p": "1"},
        {"n": "1"}, {"n": 1.0}, {"seed": 7.0}, {"top_k": "-1"}, {"logit_bias": {"5": "0"}},
        {"stop_token_ids": []}, {"min_tokens": "0.0"}, {"stream": "false"}, {"stream": 0}, {"logprobs": "False"},
        {"ignore_eos": 1}, {"ignore_eos": "True"}, {"skip_special_tokens": "true"}, {"detokenize": True},
        {"num_beams": 1}, {"return_routed_experts": False},
        {"dry_multiplier": 0.0}, {"xtc_probability": 0},
    ],
)  # fmt: skip
def test_a_value_that_changes_nothing_is_accepted_and_changes_nothing(tiny: Endpoint, extra: dict[str, Any]) -> None:
    plain = said(tiny, "/v1/chat/completions", CHAT)
    assert said(tiny, "/v1/chat/completions", CHAT | extra)["message"] == plain["message"]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("use_beam_search", True, ("true", "best_of")), ("logits_processors", ["no"], ("a list", "logit_bias")),
        ("best_of", 3, ("3", "n;")),
        ("functions", [{"name": "f"}], ("a list", "Use tools")), ("min_new_tokens", 5, ("5", "min_tokens")),
        ("structural_tag", {}, ("an object", "response_format")), ("do_sample", False, ("false", "temperature: 0")),
        ("moderation", {"model": "m", "policy": {"input": {"mode": "block"}}}, ("an object", "Leave it out")),
        ("return_prompt_text", True, ("true", "false")), ("extra_key", "mine", ("'mine'", "Use cache_salt")),
        ("num_beams", 4, ("4", "best_of")), ("detokenize", False, ("false", "true")),
        ("service_tier", "fast", ("'fast'", '"auto"')),
    ],
)  # fmt: skip
def test_a_value_that_would_change_the_answer_is_refused_with_what_to_send(
    tiny: Endpoint, field: str, value: Any, words: tuple[str, ...]
) -> None:
    status, answer = tiny.post("/v1/chat/completions", CHAT | {field: value})
    assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, field, "unsupported_parameter")
    for word in (field, *words):
        assert word in answer["error"]["message"]


def test_a_field_that_is_misspelled_is_named_beside_the_one_that_was_meant(tiny: Endpoint) -> None:
    status, answer = tiny.post("/v1/chat/completions", CHAT | {"max_token": 5})
    assert status == 400
    assert answer["error"]["message"].endswith("max_token. Did you mean max_tokens?")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", "4.5"), ("max_tokens", 4.5), ("max_tokens", "four"), ("max_tokens", ""), ("max_tokens", True),
        ("temperature", "1_0"), ("temperature", "nan"), ("temperature", "Infinity"), ("temperature", "3"),
        ("temperature", " 1"), ("temperature", "0x1"), ("n", "1e99"), ("seed", "1" * 40), ("stop_token_ids", ["x"]),
        ("top_p", "1e400"), ("stream", "yes"), ("stream", 2), ("stream", 1.0), ("ignore_eos", ""),
        ("logit_bias", {"1": "many"}),
    ],
)  # fmt: skip
def test_what_is_no_number_of_the_fields_range_is_refused(tiny: Endpoint, field: str, value: Any) -> None:
    status, answer = tiny.post("/v1/chat/completions", CHAT | {field: value})
    assert status == 400
    assert answer["error"]["param"].startswith(field)


def test_numbers_mean_the_same_however_they_are_written(tiny: Endpoint) -> None:
    settings = {"temperature": 0.8, "seed": 7, "top_k": 40, "n": 2, "max_tokens": 6, "frequency_penalty": 0.5}
    plain = tiny.post("/v1/chat/completions", CHAT | settings)[1]["choices"]
    for spell in (str, float):
        spelled = {name: spell(value) for name, value in settings.items()}
        assert tiny.post("/v1/chat/completions", CHAT | spelled)[1]["choices"] == plain
    ids = said(tiny, "/v1/completions", TEXT | {"prompt": [5, 6, 7]})
    assert said(tiny, "/v1/completions", TEXT | {"prompt": [5.0, 6.0, 7.0]}) == ids


def whole_numbers(kind: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """Fields that take whole numbers, alone or in lists, and a value for each that is written with a point."""
    for name, schema in kind.model_json_schema()["properties"].items():
        for form in (schema, *schema.get("anyOf", ())):
            least = float(max(form.get("minimum", 1), 1))
            if form.get("type") == "integer":
                yield name, least
            elif form.get("type") == "array" and form.get("items", {}).get("type") == "integer":
                yield name, [least]


@pytest.mark.parametrize("kind", [kind for kind in openapi.REQUESTS if dict(whole_numbers(kind))])
def test_a_whole_number_may_be_written_with_a_point_in_every_field(kind: type[BaseModel]) -> None:
    for name, value in whole_numbers(kind):
        with pytest.raises(ValidationError) as caught:
            # The other fields are missing.
            kind.model_validate_json(json.dumps({name: value, "no_such_field": 1}))
        assert not [error for error in caught.value.errors() if error["loc"][0] == name], (name, value)


def test_the_newer_of_two_limits_counts(tiny: Endpoint) -> None:
    answer = tiny.openai.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=9, max_completion_tokens=3, extra_body={"ignore_eos": True}
    )
    assert answer.usage.completion_tokens == 3
    status, refused = tiny.post("/v1/chat/completions", CHAT | {"max_tokens": 1, "max_completion_tokens": 0})
    assert (status, refused["error"]["param"]) == (400, "max_completion_tokens")


def test_completions_take_their_limit_under_a_chats_name(tiny: Endpoint) -> None:
    for limits, spent in (({"max_completion_tokens": 3}, 3), ({"max_tokens": 2, "max_completion_tokens": 5}, 5)):
        status, answer = tiny.post("/v1/completions", {"prompt": "hi", "ignore_eos": True} | limits)
        assert (status, answer["usage"]["completion_tokens"]) == (200, spent)
    status, refused = tiny.post("/v1/completions", {"prompt": "hi", "max_completion_tokens": 0})
    assert (status, refused["error"]["param"]) == (400, "max_completion_tokens")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 1}),
        ("/v1/completions", {"prompt": "hi", "max_tokens": 1}),
        ("/v1/responses", {"input": "hi", "max_output_tokens": 1}),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 1}),
    ],
)
def test_a_request_that_names_no_model_gets_the_served_one(tiny: Endpoint, path: str, body: dict[str, Any]) -> None:
    status, answer = tiny.post(path, body)
    assert (status, answer["model"]) == (200, "tiny"), answer
    assert tiny.post(path, body | {"model": None})[0] == 200
    assert tiny.post(path, body | {"model": ""})[0] == 404


def test_an_agents_history_is_taken_as_it_is_sent_back(tiny: Endpoint) -> None:
    marked = {"cache_control": {"type": "ephemeral"}}
    history = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief.", **marked}]},
        {"role": "user", "content": "hi", **marked},
        {"role": "assistant", "content": None, "reasoning_content": "Should I greet?", "tool_calls": []},
        {
            "role": "assistant",
            "content": "Hello",
            "reasoning": "Yes.",
            "refusal": None,
            "annotations": [],
            "audio": None,
            # As LiteLLM and LangChain hand an answer on.
            "id": "msg_1",
            "provider_specific_fields": {"refusal": None},
            "response_metadata": {"finish_reason": "stop"},
            "example": False,
        },
        {
            "role": "user",
            "content": [{"type": "text", "text": "more", "prompt_cache_breakpoint": {"mode": "explicit"}}],
        },
    ]
    plain = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"},
        {"role": "assistant", "content": ""}, {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "more"},
    ]  # fmt: skip
    whole = tiny.openai.chat.completions.create(model="tiny", messages=history, max_tokens=4, temperature=0)
    assert whole.choices[0].message.content == said(tiny, "/v1/chat/completions", CHAT | {"messages": plain,
        "ignore_eos": False})["message"]["content"]  # fmt: skip


def test_usage_comes_with_every_chunk_where_it_is_wanted(tiny: Endpoint) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    for create, prompt in ((tiny.openai.chat.completions.create, {"messages": HELLO}),
                           (tiny.openai.completions.create, {"prompt": "hi"})):  # fmt: skip
        settings = {"model": "tiny", "max_tokens": 5, "temperature": 0, "stream": True, **prompt}
        chunks = list(create(**settings, stream_options=options, extra_body={"ignore_eos": True}))
        counts = [chunk.usage.completion_tokens for chunk in chunks]
        assert counts == sorted(counts)
        # A chat's first chunk has the role alone, and its usage no tokens, as vLLM's and SGLang's.
        assert (counts[0] == 0) == ("messages" in prompt)
        assert 1 <= counts[1] <= counts[-1] == 5
        assert all(
            chunk.usage.total_tokens == chunk.usage.prompt_tokens + count
            for chunk, count in zip(chunks, counts, strict=True)
        )
        assert len({chunk.usage.prompt_tokens for chunk in chunks}) == 1
        rare = list(create(**settings, stream_options={"include_usage": True}, extra_body={"ignore_eos": True}))
        assert [chunk.usage is None for chunk in rare] == [True] * (len(rare) - 1) + [False]


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("just text", "found a string"), (5, "found a number"), (None, "found null"), ({"text": "x"}, "no type"),
        ({"type": 5}, "a number"), ({"type": "text"}, "found null"), ({"type": "text", "text": ["x"]}, "found a list"),
        ({"type": "input_audio"}, "'input_audio'"), ({"type": "text", "text": "x", "lang": "en"}, "'lang'"),
    ],
)  # fmt: skip
def test_a_part_that_is_no_text_is_described(tiny: Endpoint, part: Any, words: str) -> None:
    status, answer = tiny.post("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": [part]}]})
    assert (status, answer["error"]["param"]) == (400, "messages[0].content")
    assert words in answer["error"]["message"], json.dumps(answer)
    assert "?" not in answer["error"]["message"]


@pytest.mark.parametrize(
    ("path", "extra", "token"),
    [
        ("/v1/completions", {"prompt": [5, 320, 6]}, 320), ("/v1/completions", {"prompt": [[5], [-1]]}, -1),
        ("/v1/chat/completions", {"logit_bias": {"4": 1, "999": 1}}, 999),
        ("/v1/chat/completions", {"stop_token_ids": [4, 1234]}, 1234),
    ],
)  # fmt: skip
def test_a_token_outside_the_vocabulary_is_named(tiny: Endpoint, path: str, extra: dict[str, Any], token: int) -> None:
    status, answer = tiny.post(path, (TEXT if "prompt" in extra else CHAT) | extra)
    assert (status, answer["error"]["param"]) == (400, next(iter(extra)))
    assert f"token {token}," in answer["error"]["message"]
    assert "0 to 319" in answer["error"]["message"]
