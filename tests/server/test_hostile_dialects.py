"""Bodies of `/v1/responses` and `/v1/messages` with a wrong value anywhere: each is read, or refused by name."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from plimsoll.runtime.server.errors import ApiError
from plimsoll.runtime.server.messages_api.request import CountRequest, MessagesRequest
from plimsoll.runtime.server.parse import parse
from plimsoll.runtime.server.responses_api.request import ResponsesRequest
from tests.support.endpoint import Endpoint, eventually

NASTY: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 10**400, "", "x", "\x00", "🦀", [], [None], [[]], [{}], {}, {"": None}, {"type": None},
    {"type": "no_such_type"}, {"type": ["text"]}, [{"type": "text"}], [{"role": "user"}],
)  # fmt: skip
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
RESPONSE: dict[str, Any] = {
    "model": "tiny", "instructions": "Be.", "max_output_tokens": 2, "temperature": 0.5, "top_logprobs": 1,
    "tools": [{"type": "function", "name": "f", "description": "d", "parameters": SCHEMA, "strict": True},
              {"type": "web_search"}],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto"}, "include": ["message.output_text.logprobs"],
    "metadata": {"a": "b"}, "truncation": "auto", "store": True, "stream": True, "user": "me",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "s"}],
         "content": [{"type": "reasoning_text", "text": "t"}], "encrypted_content": "plimsoll:aGk="},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a", "annotations": []}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "o"}]},
        {"type": "custom_tool_call", "call_id": "d", "name": "g", "input": "text"},
        {"type": "custom_tool_call_output", "call_id": "d", "output": "o"},
    ],
}  # fmt: skip
MESSAGE: dict[str, Any] = {
    "model": "tiny", "max_tokens": 2, "stop_sequences": ["END"], "temperature": 0.5, "top_k": 3, "stream": True,
    "system": [{"type": "text", "text": "Be.", "cache_control": {"type": "ephemeral"}}],
    "tools": [{"name": "f", "description": "d", "input_schema": SCHEMA}, {"type": "web_search_20250305", "name": "w"}],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024}, "metadata": {"user_id": "me"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "t", "signature": "s"}, {"type": "redacted_thinking", "data": "d"},
            {"type": "text", "text": "a"}, {"type": "tool_use", "id": "c", "name": "f", "input": {"a": "b"}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "c", "is_error": True, "content": [{"type": "text", "text": "o"}]},
            {"type": "document", "title": "n", "source": {"type": "text", "data": "x"}}]},
        {"role": "system", "content": "s"},
    ],
}  # fmt: skip
KINDS = {"response": (ResponsesRequest, RESPONSE), "message": (MessagesRequest, MESSAGE)}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to every value inside of `value`."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inside in members:
        yield (*path, name)
        yield from places(inside, (*path, name))


def changed(body: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """`body` with another value at `path`."""
    found = copy.deepcopy(body)
    at = found
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    return found


def refusal(kind: str, body: dict[str, Any]) -> ApiError | None:
    """Why a body is refused, None where it is read."""
    try:
        parse(json.dumps(body).encode(), KINDS[kind][0]).chat(set())
    except ApiError as error:
        return error
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_value_anywhere_is_read_or_refused_with_its_field(kind: str) -> None:
    body, refused = KINDS[kind][1], 0
    for path in places(body):
        for value in NASTY:
            error = refusal(kind, changed(body, path, value))
            if error is not None:
                refused += 1
                assert error.status == 400, (path, value)
                assert error.message, (path, value)
                assert len(error.param or "") < 200, (path, value)
    assert refused > 500


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_field_anywhere_is_read_or_refused(kind: str) -> None:
    body = KINDS[kind][1]
    for path in places(body):
        found = changed(body, path, None)
        at = found
        for name in path[:-1]:
            at = at[name]
        del at[path[-1]]
        error = refusal(kind, found)
        assert error is None or error.status == 400, path


def test_counting_needs_no_limit_of_tokens() -> None:
    body = {name: value for name, value in MESSAGE.items() if name != "max_tokens"}
    assert parse(json.dumps(body | {"tool_choice": None}).encode(), CountRequest)


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/v1/messages/count_tokens"])
def test_no_body_is_a_fault_of_the_server(tiny: Endpoint, path: str) -> None:
    bodies = [b"", b"{", b"null", b"[]", b'{"model":"tiny\xff"}', b"[" * 100_000, b'{"input":' * 5000]
    for value in ('"\\ud800"', "1e400", "[[[]]]", '[{"role":"user","content":"\\u0000"}]', "NaN"):
        rest = f'"input":{value},"messages":{value},"max_tokens":1,"max_output_tokens":1'
        bodies.append(f'{{"model":"tiny",{rest}}}'.encode())
    for body in bodies:
        status, _ = tiny.post(path, body)
        assert status in (200, 400), body[:80]
    eventually(tiny.idle)
