"""What is wrong is refused by name, in OpenAI's words, and never reaches the engine."""

import re
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.support.endpoint import Endpoint, serving

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
TEXT = {"model": "tiny", "prompt": "hi", "max_tokens": 2}


def refused(endpoint: Endpoint, path: str, body: Any, status: int = 400) -> dict[str, Any]:
    """Asserts an OpenAI error body and returns its inside."""
    found, answer = endpoint.post(path, body)
    assert (found, set(answer)) == (status, {"error"}), answer
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in answer["error"]["message"]
    return answer["error"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy"}),
        ("web_search_options", {}),
        ("verbosity", "loud"),
        ("structural_tag", {}),
        ("use_beam_search", True),
        ("no_such_field", 1),
    ],
)
def test_a_field_that_is_not_run_is_named(tiny: Endpoint, field: str, value: Any) -> None:
    error = refused(tiny, "/v1/chat/completions", CHAT | {field: value})
    assert error["param"] == field
    assert field in error["message"]
    assert error["code"] in ("unsupported_parameter", "unknown_parameter")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1), ("temperature", 2.1), ("temperature", "warm"), ("temperature", True), ("top_p", 0),
        ("top_p", 1.5), ("n", 0), ("n", 17), ("n", 1.5), ("max_tokens", 0), ("max_tokens", -1),
        ("presence_penalty", 3), ("frequency_penalty", -3), ("logit_bias", {"x": 1}), ("logit_bias", {"1": 101}),
        ("logit_bias", {"320": 1}), ("logit_bias", [1]), ("seed", 2**63), ("seed", "a"), ("stop", 5), ("stop", ""),
        ("stop", ["a"] * 17), ("stop_token_ids", [-1]), ("stop_token_ids", [320]), ("top_k", -2), ("min_p", 2),
        ("repetition_penalty", 0), ("min_tokens", -1), ("min_tokens", 3), ("prompt_logprobs", 21),
        ("stream", "yes"), ("stream_options", {"include_usage": False}), ("messages", []), ("messages", "hi"),
        ("messages", [{"role": "user"}]), ("messages", [{"role": "tool", "content": "x"}]),
        ("messages", [{"content": "x"}]), ("top_logprobs", 2),
        ("chat_template_kwargs", {"messages": []}),
        ("chat_template", "none"), ("chat_template", "{{ messages }}"),
        ("chat_template_kwargs", {"return_dict": True}), ("continue_final_message", True), ("model", 5),
    ],
)  # fmt: skip
def test_a_wrong_value_in_a_chat_is_named(tiny: Endpoint, field: str, value: Any) -> None:
    error = refused(tiny, "/v1/chat/completions", CHAT | {field: value})
    assert error["param"].startswith(field)


def test_keys_that_are_no_tokens_are_all_named(tiny: Endpoint) -> None:
    error = refused(tiny, "/v1/chat/completions", CHAT | {"logit_bias": {"first": 1, "5": 2, "{second}": 3}})
    assert "'first', '{second}'" in error["message"]
    assert "out of vocabulary" in refused(tiny, "/v1/completions", TEXT | {"logit_bias": {"320": 1}})["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""), ("prompt", []), ("prompt", [[]]), ("prompt", [1, "a"]), ("prompt", [320]), ("prompt", [-1]),
        ("prompt", [True]), ("prompt", None), ("prompt", ["a"] * 65), ("suffix", "end"), ("best_of", 17),
        ("logprobs", 21), ("logprobs", True), ("max_tokens", 0), ("echo", "yes"), ("messages", []),
    ],
)  # fmt: skip
def test_a_wrong_value_in_a_completion_is_named(tiny: Endpoint, field: str, value: Any) -> None:
    assert refused(tiny, "/v1/completions", TEXT | {field: value})["param"] == field


def test_best_of_below_n_or_streamed_is_refused(tiny: Endpoint) -> None:
    assert refused(tiny, "/v1/completions", TEXT | {"n": 2, "best_of": 1})["param"] == "best_of"
    assert refused(tiny, "/v1/completions", TEXT | {"best_of": 2, "stream": True})["param"] == "best_of"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"model":' * 10_000,
        b'{"model":"tiny","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
        b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"top_p":1e999}',
        b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"n":' + b"9" * 10_000 + b"}",
        b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"chat_template_kwargs":' + b'{"a":' * 5000 + b"1",
    ],
)  # fmt: skip
def test_hostile_json_is_a_plain_400(tiny: Endpoint, body: bytes) -> None:
    refused(tiny, "/v1/chat/completions", body)
    refused(tiny, "/v1/completions", body)


def test_parts_that_are_not_text_are_named(tiny: Endpoint) -> None:
    image = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]
    error = refused(tiny, "/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": image}]})
    assert error["param"] == "messages[0].content"
    assert "image_url" in error["message"]


@pytest.mark.parametrize(
    "extra",
    [
        {"user": "u1"}, {"metadata": {"a": "b"}}, {"store": False}, {"service_tier": "auto"}, {"tools": []},
        {"tool_choice": "none"}, {"parallel_tool_calls": True}, {"response_format": {"type": "text"}},
        {"modalities": ["text"]}, {"logit_bias": None}, {"tools": None}, {"stop": None}, {"temperature": None},
        {"safety_identifier": "s"}, {"prompt_cache_key": "k"}, {"max_completion_tokens": 2}, {"top_k": -1},
    ],
)  # fmt: skip
def test_what_could_only_mean_what_happens_anyway_is_accepted(tiny: Endpoint, extra: dict[str, Any]) -> None:
    status, answer = tiny.post("/v1/chat/completions", CHAT | extra)
    assert status == 200, answer


def test_context_overflow_says_what_fits(tiny: Endpoint) -> None:
    for prompt in ([5] * 256, "word " * 2000, "x" * 1_000_000):
        error = refused(tiny, "/v1/completions", TEXT | {"prompt": prompt})
        assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
        assert "256 tokens" in error["message"]
    error = refused(tiny, "/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": "long " * 900}]})
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


def test_another_model_is_not_found(tiny: Endpoint) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        tiny.openai.chat.completions.create(**(CHAT | {"model": "gpt-4"}))
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_unknown_paths_and_methods_have_openai_bodies(tiny: Endpoint) -> None:
    error = refused(tiny, "/v1/nothing", {}, 404)
    assert error["message"] == "Unknown path: /v1/nothing. GET /docs lists the routes."
    assert error["code"] == "unknown_url"
    answer = tiny.http.get("/v1/completions")
    assert answer.status_code == 405
    assert "error" in answer.json()


@pytest.mark.parametrize(
    ("path", "lacks"),
    [("/v1/embeddings", "embeddings"), ("/embeddings", "embeddings"), ("/v1/audio/speech", "speech or transcripts")],
)
def test_a_route_of_other_servers_is_named_as_absent(tiny: Endpoint, path: str, lacks: str) -> None:
    message = refused(tiny, path, {"model": "tiny", "input": "hi"}, 404)["message"]
    assert message.startswith(f"Unknown path: {path}. This server generates text and has no {lacks}.")


def test_a_body_that_is_too_large_is_413_whole_or_in_chunks(tiny: Endpoint) -> None:
    large = b" " * (2 * 1024 * 1024)
    error = refused(tiny, "/v1/chat/completions", large, 413)
    assert error["code"] == "request_too_large"
    assert "1048576 bytes" in error["message"]
    assert "256 tokens" in error["message"]
    assert "max_body_bytes" in error["message"]

    def chunks():
        for start in range(0, len(large), 1 << 18):
            yield large[start : start + (1 << 18)]

    try:
        kind = {"Content-Type": "application/json"}
        answer = httpx.post(f"{tiny.url}/chat/completions", content=chunks(), headers=kind, timeout=30)
    except (httpx.WriteError, httpx.RemoteProtocolError):
        return  # The server closed while we were still sending, which it may.
    assert answer.status_code == 413


def test_refused_requests_leave_no_trace_in_the_engine(tiny: Endpoint) -> None:
    steps = tiny.service.engine.stats.steps
    for body in (CHAT | {"tools": [1]}, CHAT | {"temperature": 9}, TEXT):
        tiny.post("/v1/chat/completions", body)
    assert tiny.service.engine.stats.steps == steps
    assert tiny.idle()


def test_the_openapi_document_describes_what_is_parsed(tiny: Endpoint) -> None:
    document = tiny.http.get("/openapi.json").json()
    chat = document["components"]["schemas"]["ChatCompletionRequest"]
    assert chat["additionalProperties"] is False
    assert {"messages", "temperature", "top_k", "stream_options"} <= chat["properties"].keys()
    assert {"tools", "tool_choice"} <= chat["properties"].keys()
    assert "functions" not in chat["properties"]


def test_what_no_idle_server_would_take_is_a_400_and_all_else_is_taken(tiny_checkpoint: Path) -> None:
    limits = {"max_running": 4, "max_queued_requests": 8, "max_queued_tokens": 100}
    with serving(tiny_checkpoint, limits) as endpoint:

        def asked(path: str, **body: Any) -> tuple[int, Any]:
            return endpoint.post(path, {"model": "tiny", "max_tokens": 1, **body})

        prompts = [[5 + index] for index in range(4)]
        assert asked("/v1/completions", prompt=prompts, n=3)[0] == 200
        assert asked("/v1/completions", prompt=[[7] * 25] * 4)[0] == 200
        assert asked("/v1/completions", prompt=[7] * 200)[0] == 200
        for path, body, words, field in (
            (
                "completions",
                {"prompt": [*prompts, [1]], "n": 3},
                "5 prompts × 3 samples are 15, .* at most 12",
                "prompt",
            ),
            ("completions", {"prompt": [5], "best_of": 13}, "13 samples are 13, .* at most 12", "best_of"),
            ("chat/completions", {"messages": CHAT["messages"], "n": 13}, "13 samples are 13, .* at most 12", "n"),
            ("completions", {"prompt": [[7] * 26] * 4}, "first 4 prompts have 104, .* at most 100", "prompt"),
        ):
            status, answer = asked(f"/v1/{path}", **body)
            assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, "invalid_value", field)
            assert re.search(words, answer["error"]["message"])
