"""What a grammar of calls lets a model write is what the family's parser reads back."""

import json
import random
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer

from plimsoll.runtime.server.parsing.formats import FAMILIES
from plimsoll.runtime.server.parsing.reader import AnswerReader
from plimsoll.runtime.server.parts import Called, merged
from plimsoll.runtime.server.tool_grammar import Offer, must_call

PARAMETERS: dict[str, dict[str, Any]] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
            "unit": {"enum": ["C", "F"]},
            "at": {"$ref": "#/$defs/place"},
        },
        "required": ["city", "at"],
        "additionalProperties": False,
        "$defs": {"place": {"type": "object", "properties": {"x": {"type": "number"}}, "additionalProperties": False}},
    },
    "get_time": {},
}
BYTES = LLTokenizer("byte")


def written(grammar: str, seed: int) -> str:
    """A text that the grammar allows: what it leaves open is chosen at random, a sign's beginning often."""
    draw = random.Random(seed)
    matcher = LLMatcher(BYTES, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    text = bytearray()
    close = b""
    while not matcher.is_stopped() and len(text) < 3000:
        mask = matcher.compute_logit_bias()
        allowed = [byte for byte in range(256) if mask[byte]]
        if not allowed or (matcher.is_accepting() and draw.random() < 0.5):
            break
        if len(allowed) > 60 and not close and draw.random() < 0.3:
            # Free text: it ends where its family's tag does.
            close = next((tag for tag in TAGS if tag.decode() in grammar.replace("\\/", "/")), b'"')
        if close and close[0] in allowed:
            byte, close = close[0], close[1:]
        else:
            close = b""
            byte = draw.choice([b for b in allowed if 32 <= b < 127] or allowed)
        text.append(byte)
        assert matcher.consume_token(byte), (text, matcher.get_error())
    return text.decode()


TAGS = ("</｜DSML｜parameter>".encode(), b"</arg_value>", b"</parameter>")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_text_of_the_grammar_is_read_as_calls_whose_arguments_fit_the_schema(family: str) -> None:
    offers = [Offer(name, schema) for name, schema in PARAMETERS.items()]
    grammar = must_call(family, offers, lambda text: json.dumps(text, ensure_ascii=False), several=True)
    names = set()
    for seed in range(6):
        text = written(grammar, seed)
        reader = AnswerReader(family=FAMILIES[family], functions=PARAMETERS)
        parts = merged([part for letter in text for part in reader.read(letter)] + reader.end())
        assert parts, text
        for part in parts:
            assert isinstance(part, Called), text
            names.add(part.name)
            jsonschema.validate(json.loads(part.arguments), PARAMETERS[part.name])
    assert names == set(PARAMETERS)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_call_is_all_where_calls_may_not_be_parallel(family: str) -> None:
    grammar = must_call(
        family, [Offer("get_time", {})], lambda text: json.dumps(text, ensure_ascii=False), several=False
    )
    reader = AnswerReader(family=FAMILIES[family], functions={"get_time": {}})
    parts = merged(reader.read(written(grammar, 1)) + reader.end())
    assert [(part.name, json.loads(part.arguments)) for part in parts if isinstance(part, Called)] == [("get_time", {})]
    assert len(parts) == 1


def test_options_that_are_no_object_are_left_to_the_compiler() -> None:
    for family in FAMILIES:
        assert must_call(family, [Offer("f", {"x-guidance": 5, "properties": {"a": {}}})], json.dumps, several=True)
