"""Bodies for every route that takes one: honest ones, and the same with random parts replaced, removed or added."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

TURNS = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}}, "required": ["a"]}
FUNCTION = {"name": "f", "description": "d", "parameters": SCHEMA}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
CHAT = {"messages": TURNS, "max_tokens": 3}
NAMED = {"type": "json_schema", "name": "s", "schema": SCHEMA}

HONEST: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", CHAT | {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": True}),
    ("/v1/chat/completions", CHAT | {
        "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}, "stream": True}),
    ("/v1/chat/completions", CHAT | {
        "tools": [TOOL],
        "messages": [*TURNS, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                     {"role": "tool", "tool_call_id": "c", "content": "2"}]}),
    ("/v1/chat/completions", CHAT | {
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA, "strict": True}}}),
    ("/v1/chat/completions", CHAT | {"response_format": {"type": "json_object"}, "stream": True, "n": 2}),
    ("/v1/chat/completions", CHAT | {"structured_outputs": {"regex": "[0-9]{1,3}"}, "logprobs": True}),
    ("/v1/chat/completions", CHAT | {
        "guided_choice": ["a", "b"], "reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}}),
    ("/v1/completions", {"prompt": "x", "max_tokens": 3, "guided_grammar": 'start: "a" | "b"', "logprobs": 2}),
    ("/v1/responses", {
        "input": "hi", "max_output_tokens": 3, "tools": [{"type": "function", **FUNCTION, "strict": True}],
        "tool_choice": "auto", "text": {"format": NAMED}, "reasoning": {"effort": "low"}, "store": False}),
    ("/v1/responses", {
        "max_output_tokens": 3, "stream": True,
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]},
                  {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                  {"type": "function_call_output", "call_id": "c", "output": "3"}]}),
    ("/v1/messages", CHAT | {
        "system": "s", "tools": [{"name": "f", "description": "d", "input_schema": SCHEMA}],
        "tool_choice": {"type": "any"}, "stream": True, "thinking": {"type": "enabled", "budget_tokens": 1024}}),
    ("/v1/messages", CHAT | {
        "messages": [*TURNS, {"role": "assistant", "content": [
                         {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}]},
                     {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "2"}]}],
        "tools": [{"name": "f", "input_schema": SCHEMA}], "stop_sequences": ["x"]}),
    ("/v1/messages", CHAT | {"output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}}}),
    ("/v1/messages/count_tokens", {
        "messages": TURNS, "system": [{"type": "text", "text": "x"}],
        "tools": [{"name": "f", "input_schema": SCHEMA}]}),
    ("/tokenize", {"prompt": "hello", "add_special_tokens": True, "return_token_strs": True}),
    ("/tokenize", {"messages": TURNS, "tools": [TOOL], "add_generation_prompt": True}),
    ("/detokenize", {"tokens": [1, 2, 3]}),
)  # fmt: skip
ROUTES = tuple(dict.fromkeys(path for path, _ in HONEST))


def _nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        found = {"type": "object", "properties": {"a": found}, "required": ["a"]}
    return found


#: Schemas and grammars that have no answer, no end, or a great many.
RULES: tuple[Any, ...] = (
    {"$ref": "#"}, {"$ref": "#/$defs/x"}, {"$defs": {"x": {"$ref": "#/$defs/x"}}, "$ref": "#/$defs/x"}, {"anyOf": []},
    {"type": None}, {"type": "x"}, {"type": "object", "properties": []}, {"enum": []}, {"enum": list(range(3000))},
    {"type": "string", "pattern": "("}, {"type": "string", "pattern": "(a*)*b{1,1000}"}, {"not": {}},
    {"type": "string", "minLength": 10**9}, {"type": "integer", "minimum": 5, "maximum": 1}, {"multipleOf": 0},
    {"type": "array", "minItems": 10**8}, {"allOf": [{"type": "string"}, {"type": "integer"}]}, _nested(40),
    {"const": float("nan")}, {"type": "number", "minimum": 1e308, "maximum": -1e308}, {"patternProperties": {"(": {}}},
    "(" * 500, "[a-z]{1,100000}", "start: start", 'start: "a" start', "root ::= root", '%llguidance {}\nstart: "a"',
    "start: /(/", "\\d+(?=x)", 'start: "a"{1,1000000}', "start: @missing", "start: <|im_end|>",
)  # fmt: skip
NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", "a", "\x00", "\ud800", "é" * 50, "<|im_end|>", "<tool_call>", "</think>", "{", "a" * 5000, "none", "required",
    [], {}, [[]], [None], [{}], {"a": None}, {"type": "function"}, {"type": "text", "text": ""}, {"x" * 300: 1},
    ["a"] * 2000, [2**40], [-1], [1.5], ["x", 1], json.loads("[" * 50 + "]" * 50), *RULES,
)  # fmt: skip
#: Fields that some route reads, and that a request for another one may have too.
FIELDS = (
    "response_format", "tools", "tool_choice", "structured_outputs", "guided_json", "guided_regex", "guided_grammar",
    "guided_choice", "regex", "ebnf", "json_schema", "grammar", "reasoning", "reasoning_effort", "thinking",
    "thinking_token_budget", "text", "stop", "n", "logprobs", "top_logprobs", "stream", "stream_options", "max_tokens",
    "min_tokens", "logit_bias", "chat_template_kwargs", "include", "metadata", "cache_salt", "return_token_ids",
    "instructions", "output_config", "parallel_tool_calls", "truncation", "prompt", "model", "ignore_eos",
)  # fmt: skip


def hostile(rng: random.Random) -> tuple[str, bytes]:
    """A path and a body that may be wrong in up to three places, and may be no JSON."""
    path, honest = rng.choice(HONEST)
    body = copy.deepcopy(honest)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        _damage(rng, body)
    raw = json.dumps(body).encode()
    kind, at = rng.random(), rng.randrange(len(raw))
    if kind < 0.02:
        return path, raw[:at]
    if kind < 0.04:
        return path, raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :]
    return path, raw


def _damage(rng: random.Random, body: dict[str, Any]) -> None:
    kind = rng.random()
    if kind < 0.65:
        places = list(_places(body))
        if not places:
            return
        holder, key = rng.choice(places)
        if kind < 0.5:
            holder[key] = copy.deepcopy(rng.choice(NASTY))
        else:
            del holder[key]
    elif kind < 0.85:
        body[rng.choice(FIELDS)] = copy.deepcopy(rng.choice(NASTY))
    else:
        other = rng.choice(HONEST)[1]
        name = rng.choice(list(other))
        body[name] = copy.deepcopy(other[name])


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in `value` with each of its keys."""
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)
