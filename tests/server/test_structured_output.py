"""Answers that match a schema, a regular expression, a choice or a grammar, over HTTP."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.support.endpoint import Endpoint, eventually, serving

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 120}
TEXT = {"model": "tiny", "prompt": "hi", "max_tokens": 120}
#: Bounded, so that a model of random weights ends by itself.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "likes": {"type": "array", "items": {"enum": ["tea", "coffee"]}, "maxItems": 2},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
GBNF = 'root ::= greeting " " [a-c]+ # one\ngreeting ::= "hello" | "\\u0068i"\n'


def said(endpoint: Endpoint, path: str, body: dict[str, Any]) -> list[tuple[str, str]]:
    """Text and finish reason of each choice."""
    status, answer = endpoint.post(path, body)
    assert status == 200, answer
    texts = [choice.get("text", choice.get("message", {}).get("content")) for choice in answer["choices"]]
    return [(text, choice["finish_reason"]) for text, choice in zip(texts, answer["choices"], strict=True)]


def test_an_answer_matches_its_schema_whole_and_streamed(tiny: Endpoint) -> None:
    settings: dict[str, Any] = {**CHAT, "seed": 5, "response_format": FORMAT}
    whole = tiny.openai.chat.completions.create(**settings)
    assert whole.choices[0].finish_reason == "stop"
    text = whole.choices[0].message.content or ""
    jsonschema.validate(json.loads(text), SCHEMA)
    chunks = list(tiny.openai.chat.completions.create(**settings, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    "extra",
    [
        {"response_format": FORMAT}, {"guided_json": SCHEMA}, {"guided_json": json.dumps(SCHEMA)},
        {"json_schema": SCHEMA}, {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
    ],
)  # fmt: skip
@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
def test_every_spelling_of_a_schema_holds_for_each_sample(
    tiny: Endpoint, path: str, body: dict[str, Any], extra: dict[str, Any]
) -> None:
    answers = said(tiny, path, {**body, **extra, "n": 2, "seed": 1})
    for text, reason in answers:
        assert reason == "stop"
        jsonschema.validate(json.loads(text), SCHEMA)
    assert answers[0] != answers[1]


@pytest.mark.parametrize(
    ("extra", "allowed"),
    [
        ({"guided_regex": r"[0-9]{3}-x/y"}, r"[0-9]{3}-x/y"), ({"regex": "^(ab){2}$"}, "(ab){2}"),
        ({"structured_outputs": {"regex": "[é🎉]"}}, "[é🎉]"),
        ({"guided_choice": ["yes", 'n"o\\', "é\n"]}, 'yes|n"o\\\\|é\n'),
        ({"structured_outputs": {"choice": ["", "b"]}}, "b?"), ({"guided_grammar": GBNF}, "(hello|hi) [a-c]+"),
        ({"ebnf": 'root ::= "a" | "b"'}, "a|b"), ({"grammar": 'start: "x" /[0-9]/'}, "x[0-9]"),
        ({"structured_outputs": {"grammar": 'start: "x"{2,3}'}}, "x{2,3}"),
    ],
)  # fmt: skip
def test_an_answer_is_what_a_regex_a_choice_or_a_grammar_allows(
    tiny: Endpoint, extra: dict[str, Any], allowed: str
) -> None:
    ((text, reason),) = said(tiny, "/v1/completions", {**TEXT, **extra, "seed": 2})
    assert re.fullmatch(allowed, text) or (reason == "length" and re.match(allowed, text)), text


def test_a_json_object_is_never_more_than_an_object(tiny: Endpoint) -> None:
    body = {**CHAT, "response_format": {"type": "json_object"}, "seed": 3, "logit_bias": {str(tiny_id(tiny, "}")): 30}}
    ((text, reason),) = said(tiny, "/v1/chat/completions", body)
    assert reason == "stop"
    assert isinstance(json.loads(text), dict)


def tiny_id(endpoint: Endpoint, text: str) -> int:
    (token,) = endpoint.service.tokenizer.encode(text)
    return token


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("guided_json", {"type": "strin"}, "Invalid type: strin"), ("guided_json", "{", "Expecting"),
        ("guided_json", "[]", "must be an object or a boolean (found a list)"),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x"}}, "Send a JSON schema"),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}, "not"),
        ("guided_regex", "(?=a)b", "look-ahead"), ("regex", "[", "unclosed"), ("ebnf", 'start: "a" b', "unknown name"),
        ("grammar", "root ::= x", "Rule 'x' not found"), ("guided_grammar", "!", "neither Lark nor GBNF"),
        ("structured_outputs", {}, "one of json, regex, choice, grammar"),
        ("structured_outputs", {"regex": "a", "choice": ["b"]}, "found 2"),
        ("json_schema", {"type": "string", "minLength": 3, "maxLength": 1}, "Unsatisfiable"),
        ("json_schema", {"$ref": "http://127.0.0.1/x"}, "does not fetch"),
    ],
)  # fmt: skip
def test_what_cannot_be_compiled_is_refused_in_the_compilers_words(
    tiny: Endpoint, field: str, value: Any, words: str
) -> None:
    status, answer = tiny.post("/v1/completions", {**TEXT, field: value})
    assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, field, "invalid_value")
    assert field in answer["error"]["message"]
    assert words in answer["error"]["message"]


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": [f"value {index}" for index in range(8000)]}, {"$ref": "#"},
        {"allOf": [{"anyOf": [{"required": [f"p{i}"]}, {"required": [f"q{i}"]}]} for i in range(15)]},
        {"type": "array", "maxItems": 10**6, "items": {"type": "array", "maxItems": 10**6}},
        {"type": "string", "pattern": "^(.*a.{200}|.*b.{200}|.*c.{199})$"},
        {"type": "integer", "minimum": 1, "maximum": 10**30, "multipleOf": 9999991},
        {"anyOf": [{"$ref": "#"}, {"type": "array", "items": {"$ref": "#"}}]},
        {"properties": {f"k{index}": {"type": "string"} for index in range(2000)}},
        {"type": "string", "pattern": "((a{1,100}){1,100}){1,100}", "minLength": 10**6},
    ],
)  # fmt: skip
def test_a_hostile_schema_is_refused_or_runs_and_the_server_goes_on(tiny: Endpoint, schema: dict[str, Any]) -> None:
    restarts = tiny.service.engine.restarts
    status, answer = tiny.post("/v1/completions", {**TEXT, "max_tokens": 16, "guided_json": schema, "seed": 1})
    assert status in (200, 400), answer
    assert said(tiny, "/v1/completions", {**TEXT, "regex": "ab"}) == [("ab", "stop")]
    assert tiny.service.engine.restarts == restarts


def test_an_engine_that_was_started_again_learns_the_vocabulary_again(tiny_checkpoint: Path) -> None:
    with serving(tiny_checkpoint) as endpoint:
        for attempt in range(2):
            assert said(endpoint, "/v1/completions", {**TEXT, "regex": "ab"}) == [("ab", "stop")]
            if not attempt:
                os.kill(endpoint.service.engine.pid or 0, signal.SIGKILL)
                eventually(lambda: endpoint.service.engine.restarts == 1 and endpoint.service.engine.ready)


def test_two_constraints_are_refused_by_both_names(tiny: Endpoint) -> None:
    status, answer = tiny.post("/v1/completions", {**TEXT, "guided_regex": "a", "response_format": FORMAT})
    assert (status, answer["error"]["param"]) == (400, "guided_regex")
    assert "response_format and guided_regex" in answer["error"]["message"]
    assert said(tiny, "/v1/completions", {**TEXT, "regex": "a", "response_format": {"type": "text"}}) == [("a", "stop")]
