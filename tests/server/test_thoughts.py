"""Thoughts of a served model that thinks, on every route of conversations: finished, cut short, and with a budget."""

import json
from typing import Any

import pytest

from plimsoll.runtime.server.protocol import BUDGETS
from tests.support.dialects import MessageFollower, ResponseFollower
from tests.support.endpoint import Endpoint
from tests.support.thinker import ANSWER, THOUGHT

ASKED: list[Any] = [{"role": "user", "content": "Hello"}]
CHAT: dict[str, Any] = {"model": "thinker", "messages": ASKED, "temperature": 0, "max_tokens": 60}
#: The prompt begins the thought, or the model does.
OPEN: dict[str, Any] = {"chat_template_kwargs": {"opened": True}}
WAYS = pytest.mark.parametrize("way", [{}, OPEN], ids=["by-the-model", "by-the-prompt"])
#: Tokens of an answer before its thought, by way.
SIGN, END, REST = 1, 1, 4


def chat(thinker: Endpoint, **fields: Any) -> tuple[str, str, str, int]:
    """Thought, answer, reason and reasoning tokens, the same whole and streamed."""
    status, whole = thinker.post("/v1/chat/completions", CHAT | fields)
    assert status == 200, whole
    choice, message = whole["choices"][0], whole["choices"][0]["message"]
    assert message.get("reasoning") == message.get("reasoning_content")
    found = (
        message.get("reasoning_content") or "", message["content"] or "", choice["finish_reason"],
        whole["usage"]["reasoning_tokens"],
    )  # fmt: skip
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    answer = thinker.http.post("/v1/chat/completions", json=CHAT | fields | usage)
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line and "[DONE]" not in line]
    chunks = [json.loads(line) for line in lines]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert all(delta.get("reasoning") == delta["reasoning_content"] for delta in deltas)
    said = ["content" in delta and delta["content"] != "" for delta in deltas]
    thought = ["reasoning" in delta for delta in deltas]
    # No thought comes after the answer's first word.
    assert True not in thought[said.index(True) :] if True in said else True
    streamed = (
        "".join(delta.get("reasoning_content") or "" for delta in deltas),
        "".join(delta.get("content", "") for delta in deltas),
        next(chunk["choices"][0]["finish_reason"] for chunk in reversed(chunks) if chunk["choices"]),
        chunks[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"],
    )
    assert streamed == found
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    return found


@WAYS
def test_a_chat_gives_the_thought_apart_whole_or_cut(thinker: Endpoint, way: dict[str, Any]) -> None:
    assert chat(thinker, **way) == (THOUGHT, ANSWER, "stop", 8)
    begun = 0 if way else SIGN
    assert chat(thinker, **way, max_tokens=begun + 3) == (THOUGHT[:3], "", "length", 3)
    assert chat(thinker, **way, max_tokens=begun + 8 + END) == (THOUGHT, "", "length", 8)
    assert chat(thinker, **way, max_tokens=begun + 8 + END + 2) == (THOUGHT, ANSWER[:1], "length", 8)
    assert chat(thinker, **way, stop=["d"]) == (THOUGHT[:3], "", "stop", 4)
    assert chat(thinker, **way, include_reasoning=False)[:2] == ("", ANSWER)


def test_a_thought_that_stays_in_the_text_leaves_its_field_null(thinker: Endpoint) -> None:
    body = CHAT | {"separate_reasoning": False}
    message = thinker.post("/v1/chat/completions", body)[1]["choices"][0]["message"]
    assert (message["reasoning_content"], THOUGHT in message["content"]) == (None, True)
    lines = thinker.http.post("/v1/chat/completions", json=body | {"stream": True}).text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line and "[DONE]" not in line]
    assert [chunk["choices"][0]["delta"]["reasoning_content"] for chunk in chunks] == [None] * len(chunks)


@WAYS
def test_a_response_has_a_reasoning_item_whole_or_cut(thinker: Endpoint, way: dict[str, Any]) -> None:
    for most, thought, said, status in ((60, THOUGHT, ANSWER, "completed"), (4, "", "", "incomplete")):
        body = {"model": "thinker", "input": "Hello", "temperature": 0, "max_output_tokens": most} | way
        thought = thought or THOUGHT[: 4 - (0 if way else SIGN)]
        whole = thinker.post("/v1/responses", body)[1]
        streamed = ResponseFollower().follow(thinker.events("/v1/responses", body))
        for found in (whole, streamed):
            assert found["status"] == status
            assert found["output"][0]["content"] == [{"type": "reasoning_text", "text": thought}]
            assert [part["text"] for item in found["output"][1:] for part in item["content"]] == (
                [said] if said else []
            )
            assert found["usage"]["output_tokens_details"] == {"reasoning_tokens": len(thought)}
    typed = thinker.openai.responses.create(model="thinker", input="Hello", temperature=0, extra_body=way)
    assert [item.type for item in typed.output] == ["reasoning", "message"]
    assert typed.output_text == ANSWER


@WAYS
def test_a_message_has_a_thinking_block_whole_or_cut(thinker: Endpoint, way: dict[str, Any]) -> None:
    for most, thought, said, reason in ((60, THOUGHT, ANSWER, "end_turn"), (4, "", "", "max_tokens")):
        body = {"model": "thinker", "messages": ASKED, "temperature": 0, "max_tokens": most} | way
        thought = thought or THOUGHT[: 4 - (0 if way else SIGN)]
        whole = thinker.post("/v1/messages", body)[1]
        streamed = MessageFollower().follow(thinker.events("/v1/messages", body))
        for found in (whole, streamed):
            assert found["stop_reason"] == reason
            assert found["content"][0]["thinking"] == thought
            assert [block["text"] for block in found["content"][1:]] == ([said] if said else [])


def test_a_thought_that_is_replayed_reaches_the_template(thinker: Endpoint) -> None:
    turn = {"role": "assistant", "content": ANSWER}

    def count(**more: str) -> int:
        return thinker.post("/tokenize", {"messages": [*ASKED, turn | more, *ASKED]})[1]["count"]

    assert count(reasoning_content=THOUGHT) == count(reasoning=THOUGHT) > count()


@WAYS
@pytest.mark.parametrize("budget", [0, 1, 5, 7, 8, 99])
def test_a_thought_is_closed_once_it_has_taken_its_budget(thinker: Endpoint, way: dict[str, Any], budget: int) -> None:
    kept = THOUGHT[:budget]
    assert chat(thinker, **way, thinking_token_budget=budget) == (kept, ANSWER, "stop", len(kept))


def test_a_budget_goes_with_several_answers_stops_draws_and_the_answer_s_length(thinker: Endpoint) -> None:
    body = CHAT | {"n": 3, "thinking_token_budget": 2}
    whole = thinker.post("/v1/chat/completions", body)[1]
    assert [choice["message"]["reasoning"] for choice in whole["choices"]] == [THOUGHT[:2]] * 3
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == 6
    assert chat(thinker, thinking_token_budget=5, stop=["O"]) == (THOUGHT[:5], "Y", "stop", 5)
    assert chat(thinker, thinking_token_budget=5, stop=["</think>"])[2] == "stop"
    # The sign that closes the thought is a token of the answer.
    assert chat(thinker, thinking_token_budget=3, max_tokens=SIGN + 3) == (THOUGHT[:3], "", "length", 3)
    assert chat(thinker, thinking_token_budget=3, max_tokens=SIGN + 3 + END + 2)[:2] == (THOUGHT[:3], "Y")
    assert chat(thinker, thinking_token_budget=4, temperature=2, seed=7, max_tokens=30, **OPEN)[3] <= 4
    entries = thinker.openai.chat.completions.create(
        **CHAT, logprobs=True, top_logprobs=1, extra_body={"thinking_token_budget": 1}
    )
    assert [entry.token for entry in entries.choices[0].logprobs.content[:4]] == ["<think>", "a", "</think>", "\n"]
    # Where the template has the model not think, there is nothing to close.
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    assert chat(thinker, thinking_token_budget=0, **off) == (
        *chat(thinker, **off)[:3], 0,
    )  # fmt: skip


@WAYS
@pytest.mark.parametrize("budget", [0, 3, None])
def test_formats_and_calls_hold_after_a_thought_that_was_closed(
    thinker: Endpoint, way: dict[str, Any], budget: int | None
) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    limit = way | ({} if budget is None else {"thinking_token_budget": budget})
    thought, said, reason, tokens = chat(thinker, **limit, response_format=wanted, max_tokens=120)
    assert (thought, reason) == (THOUGHT[:budget], "stop")
    assert tokens == len(thought)
    assert json.loads(said)["n"] in (1, 2)
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    whole = thinker.post(
        "/v1/chat/completions",
        CHAT | limit | {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 120},
    )[1]["choices"][0]
    assert (whole["finish_reason"], whole["message"].get("reasoning", "")) == ("tool_calls", THOUGHT[:budget])
    assert json.loads(whole["message"]["tool_calls"][0]["function"]["arguments"])["n"] in (1, 2)


def test_responses_and_messages_have_budgets_of_their_own_names(thinker: Endpoint) -> None:
    body = {"model": "thinker", "input": "Hello", "temperature": 0, "reasoning": {"max_tokens": 3}}
    found = thinker.post("/v1/responses", body)[1]
    assert found["output"][0]["content"][0]["text"] == THOUGHT[:3]
    assert found["usage"]["output_tokens_details"] == {"reasoning_tokens": 3}
    message = {"model": "thinker", "messages": ASKED, "temperature": 0, "max_tokens": 60}
    for kind in ("enabled", "adaptive"):
        given = message | {"thinking": {"type": kind, "budget_tokens": 3}}
        answer = thinker.http.post("/v1/messages", json=given)
        assert "x-plimsoll-ignored" not in answer.headers
        assert answer.json()["content"][0]["thinking"] == THOUGHT[:3]
        streamed = MessageFollower().follow(thinker.events("/v1/messages", given))
        assert streamed["content"][0]["thinking"] == THOUGHT[:3]
    off = thinker.http.post("/v1/messages", json=message | {"thinking": {"type": "disabled", "budget_tokens": 3}})
    assert off.headers["x-plimsoll-ignored"] == "thinking.budget_tokens"


@pytest.mark.parametrize("name", BUDGETS)
def test_names_of_other_servers_mean_the_same(thinker: Endpoint, name: str) -> None:
    assert chat(thinker, **{name: 2})[0] == THOUGHT[:2]
    assert chat(thinker, **{name: -1})[0] == THOUGHT
    assert chat(thinker, **{name: None})[0] == THOUGHT
    for wrong in (-2, "many", 1.5, True):
        status, answer = thinker.post("/v1/chat/completions", CHAT | {name: wrong})
        assert (status, answer["error"]["param"]) == (400, name)


@pytest.mark.parametrize(
    ("path", "fields", "param", "words"),
    [
        ("chat/completions", {"thinking_budget": 1, "thinking_token_budget": 2}, "thinking_budget", "Send one of them"),
        ("chat/completions", {"thinking_budget": 1, "separate_reasoning": False}, "thinking_budget", "needs"),
        ("completions", {"thinking_token_budget": 1, "prompt": "a"}, "thinking_token_budget", "/v1/chat/completions"),
        ("responses", {"reasoning": {"max_tokens": -1}, "input": "a"}, "reasoning.max_tokens", "whole number"),
        ("responses", {"thinking_token_budget": 1, "input": "a"}, "thinking_token_budget", "reasoning.max_tokens"),
        ("messages", {"thinking": {"type": "enabled", "budget_tokens": "x"}}, "thinking.budget_tokens", "whole number"),
    ],
)  # fmt: skip
def test_wrong_budgets_are_refused_by_name(
    thinker: Endpoint, path: str, fields: dict[str, Any], param: str, words: str
) -> None:
    body = {"model": "thinker", "max_tokens": 4} | fields
    if path == "responses":
        del body["max_tokens"]
    elif path != "completions":
        body["messages"] = ASKED
    status, answer = thinker.post(f"/v1/{path}", body)
    assert status == 400, answer
    assert words in answer["error"]["message"]
    assert param in answer["error"]["message"]
    assert answer["error"].get("param", param) == param


def test_a_model_whose_thoughts_are_not_read_refuses_a_budget_or_names_it(tiny: Endpoint) -> None:
    body = {"model": "tiny", "messages": ASKED, "max_tokens": 2}
    status, answer = tiny.post("/v1/chat/completions", body | {"thinking_token_budget": 4})
    assert (status, answer["error"]["param"]) == (400, "thinking_token_budget")
    assert "--reasoning-parser" in answer["error"]["message"]
    assert tiny.post("/v1/chat/completions", body | {"thinking_token_budget": -1})[0] == 200
    status, answer = tiny.post("/v1/responses", {"model": "tiny", "input": "a", "reasoning": {"max_tokens": 4}})
    assert (status, answer["error"]["param"]) == (400, "reasoning.max_tokens")
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        given = body | {"thinking": {"type": "enabled", "budget_tokens": 4}}
        if path.endswith("tokens"):
            del given["max_tokens"]
        answer = tiny.http.post(path, json=given)
        assert (answer.status_code, answer.headers["x-plimsoll-ignored"]) == (200, "thinking.budget_tokens")


STRICT: dict[str, Any] = {
    "name": "f",
    "strict": True,
    "parameters": {
        "type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False,
    },
}  # fmt: skip
#: The model chooses to begin a call, and goes on at random.
CALLING: dict[str, Any] = {"chat_template_kwargs": {"calling": True}, "max_tokens": 200, "temperature": 1, "seed": 1}


@pytest.mark.parametrize("choice", ["auto", None])
def test_a_call_that_the_model_begins_fits_a_strict_schema_and_text_stays_free(thinker: Endpoint, choice: Any) -> None:
    tools = {"tools": [{"type": "function", "function": STRICT}], "tool_choice": choice}
    assert chat(thinker, **tools) == (THOUGHT, ANSWER, "stop", 8)
    whole = thinker.post("/v1/chat/completions", CHAT | tools | CALLING)[1]["choices"][0]
    call = whole["message"]["tool_calls"][0]["function"]
    assert (call["name"], json.loads(call["arguments"])["n"] in (1, 2)) == ("f", True)
    loose = {"tools": [{"type": "function", "function": STRICT | {"strict": False}}]}
    whole = thinker.post("/v1/chat/completions", CHAT | loose | CALLING)[1]["choices"][0]
    assert "tool_calls" not in whole["message"]
    response = thinker.post(
        "/v1/responses",
        {"model": "thinker", "input": "Hello", "tools": [{"type": "function"} | STRICT], "max_output_tokens": 200}
        | {name: CALLING[name] for name in ("chat_template_kwargs", "temperature", "seed")},
    )[1]
    assert json.loads(response["output"][0]["arguments"])["n"] in (1, 2)


def test_a_strict_schema_that_cannot_be_run_is_refused_where_the_model_may_call(thinker: Endpoint) -> None:
    wrong = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?<=x)y"}}}
    body = CHAT | {"tools": [{"type": "function", "function": STRICT | {"parameters": wrong}}]}
    status, answer = thinker.post("/v1/chat/completions", body)
    assert (status, answer["error"]["param"]) == (400, "tools")
    assert "function 'f'" in answer["error"]["message"]
    body["tools"][0]["function"]["strict"] = False
    body["tools"].append({"type": "function", "function": STRICT | {"name": "g"}})
    assert thinker.post("/v1/chat/completions", body)[0] == 200
