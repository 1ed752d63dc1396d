"""An answer is cut to what the context leaves, or refused where the server is strict."""

from typing import Any

import openai
import pytest

from tests.support.endpoint import Endpoint

LEN = 256
HELLO = [{"role": "user", "content": "hi"}]
TEXT: dict[str, Any] = {"model": "tiny", "prompt": [5] * 250, "temperature": 0, "ignore_eos": True}
CHAT: dict[str, Any] = {"model": "tiny", "messages": HELLO, "temperature": 0, "ignore_eos": True}


@pytest.mark.parametrize("extra", [{}, {"min_tokens": 300}, {"n": 2}, {"max_tokens": 2**31 - 1}])
def test_an_answer_is_cut_to_what_the_context_leaves(tiny: Endpoint, extra: dict[str, Any]) -> None:
    status, answer = tiny.post("/v1/completions", TEXT | {"max_tokens": 300} | extra)
    assert status == 200, answer
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert answer["usage"]["completion_tokens"] == (LEN - 250) * extra.get("n", 1)


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_a_chat_that_is_cut_ends_by_its_length_streamed_or_not(tiny: Endpoint, limit: str) -> None:
    whole = tiny.post("/v1/chat/completions", CHAT | {limit: 100_000})[1]
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"]["total_tokens"] == LEN
    chunks = list(
        tiny.openai.chat.completions.create(
            model="tiny", messages=HELLO, temperature=0, stream=True, extra_body={limit: 100_000, "ignore_eos": True}
        )
    )
    assert chunks[-1].choices[0].finish_reason == "length"
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert streamed == whole["choices"][0]["message"]["content"]


def test_a_prompt_that_leaves_no_room_is_refused_strict_or_not(tiny: Endpoint, keyed: Endpoint) -> None:
    for endpoint in (tiny, keyed):
        status, answer = endpoint.post("/v1/completions", TEXT | {"prompt": [5] * LEN, "max_tokens": 1})
        assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, "context_length_exceeded", "prompt")


def test_a_strict_server_refuses_what_it_would_cut(keyed: Endpoint) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        keyed.openai.completions.create(model="tiny", prompt=[5] * 250, max_tokens=7)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "max_tokens")
    assert "256 tokens" in caught.value.message
    status, answer = keyed.post("/v1/chat/completions", CHAT | {"max_tokens": 1, "max_completion_tokens": 300})
    assert (status, answer["error"]["param"]) == (400, "max_completion_tokens")
    status, answer = keyed.post("/v1/chat/completions", CHAT | {"min_tokens": 300})
    assert (status, answer["error"]["param"]) == (400, "min_tokens")
    assert answer["error"]["message"].endswith("(found 300).")
    assert keyed.post("/v1/completions", TEXT | {"max_tokens": 6})[1]["usage"]["completion_tokens"] == 6


def test_fewer_tokens_than_the_least_is_refused_by_what_was_sent(tiny: Endpoint) -> None:
    status, answer = tiny.post("/v1/completions", TEXT | {"max_tokens": 3, "min_tokens": 4})
    assert (status, answer["error"]["param"]) == (400, "min_tokens")
    assert answer["error"]["message"].endswith("must be at most 3, which the answer may have (found 4).")
