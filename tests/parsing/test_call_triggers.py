"""Text is free, and what a model begins to call, in its family's way, matches the function's schema."""

import copy
import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from plimsoll.runtime.grammar import check, limits
from plimsoll.runtime.server.call_triggers import UNMARKED, may_call
from plimsoll.runtime.server.functions import MOST
from plimsoll.runtime.server.parsing.formats import FAMILIES
from plimsoll.runtime.server.parsing.tagged_calls import TaggedCalls
from plimsoll.runtime.server.parsing.thoughts import THOUGHTS
from plimsoll.runtime.server.tool_grammar import Offer, after_thought, must_call
from tests.parsing.test_tool_grammar import PARAMETERS, written
from tests.support.model_calls import FUNCTIONS, GOLDEN

BYTES = LLTokenizer("byte")
MARKED = [name for name in FAMILIES if name not in UNMARKED]
#: What models of each family write, with three days in it.
NATURAL = {
    name: text
    for name, text, _ in reversed(GOLDEN)
    if "get_weather" in text and name in MARKED and "<escape>" not in text
}
PROSE = 'Let me see: {"name": "Ada", "born": 1815}, [1, 2], <b>x</b> < tool, ``` é\n'


def sign(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def grammar(family: str, functions: dict[str, Any], *, several: bool = True, begin: str = "start: rest\n") -> str:
    offers = [Offer(name, schema) for name, schema in functions.items()]
    rules = may_call(family, offers, sign, several=several, thoughts=THOUGHTS["think"])
    return f"{begin}rest: auto\n{rules}\n"


def taken(lark: str, text: str) -> tuple[int, bool]:
    """Bytes of `text` that the grammar takes, and whether the answer may end there."""
    matcher = LLMatcher(BYTES, lark, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    data = text.encode()
    return matcher.try_consume_tokens(list(data)) - len(data), bool(matcher.is_accepting())


@pytest.mark.parametrize("family", MARKED)
def test_text_is_free_and_holds_calls_that_match(family: str) -> None:
    lark = grammar(family, PARAMETERS)
    check(lark)
    for text in ("", PROSE, "\n\n", PROSE * 20):
        assert taken(lark, text) == (0, True)
    offers = [Offer(name, schema) for name, schema in PARAMETERS.items()]
    calls = must_call(family, offers, sign, several=True)
    for seed in range(3):
        text = written(calls, seed)
        assert taken(lark, text) == (0, True), text
        assert taken(lark, f"{PROSE}{text}\nDone.") == (0, True), text


@pytest.mark.parametrize("family", NATURAL)
def test_a_call_that_breaks_its_schema_is_stopped_where_it_does(family: str) -> None:
    tight = copy.deepcopy(FUNCTIONS)
    tight["get_weather"]["properties"]["days"]["maximum"] = 2
    text = NATURAL[family]
    assert taken(grammar(family, FUNCTIONS), text) == (0, True)
    left, ends = taken(grammar(family, tight), text)
    assert left < 0
    assert not ends
    assert b"days" in text.encode()[:left]
    # An unknown function cannot be called either; a family without signs only says its name.
    unknown = taken(grammar(family, {"note": FUNCTIONS["note"]}), text)
    assert unknown == (0, True) if family == "llama3_json" else unknown[0] < 0


def test_a_call_alone_is_all_where_calls_may_not_be_parallel() -> None:
    call = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
    lark = grammar("hermes", {"get_time": {}}, several=False)
    assert taken(lark, f"{PROSE}{call}\nDone.") == (0, True)
    assert taken(lark, f"{call}\n{call}")[0] < 0


@pytest.mark.parametrize("opened", [True, False])
def test_signs_of_calls_are_text_in_a_thought(opened: bool) -> None:
    thought = "I could write <tool_call> or <tool_call>{}."
    call = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
    lark = grammar("hermes", {"get_time": {}}, begin=after_thought(THOUGHTS["think"], sign, thinking=opened))
    head = "" if opened else "<think>"
    for rest in ("", "\n\nYes.", f"\n\n{call}", f"Well.\n{call}\nDone."):
        assert taken(lark, f"{head}\n{thought}\n</think>{rest}") == (0, True)
    assert taken(lark, f"{head}{thought}</think>\n<tool_call>now")[0] < 0
    if not opened:
        assert taken(lark, f"Yes.\n{call}") == (0, True)
        assert taken(lark, "Yes: <tool_call>now")[0] < 0


@pytest.mark.parametrize(
    ("text", "taken_whole"),
    [
        ('{"name": "get_time", "parameters": {}}', True),
        ('{"type":"function","name":"get_time","parameters":{}}', True),
        ('{"name": "get_time", "parameters": {"now": true}}', False), ('{"name": "get_time", "born": 1}', False),
        ('Ada: {"name": "get_timer"}', True),
    ],
)  # fmt: skip
def test_an_object_with_a_function_s_name_is_a_call_for_a_family_without_signs(text: str, taken_whole: bool) -> None:
    assert (taken(grammar("llama3_json", {"get_time": {}}), text) == (0, True)) is taken_whole


@pytest.mark.parametrize("family", MARKED)
def test_signs_that_are_tokens_of_their_own_begin_calls_too(family: str) -> None:
    # Control characters stand for these tokens. Those around keys and values are ordinary tokens in every vocabulary.
    calls = FAMILIES[family].calls
    texts = (*calls.begins, *calls.ends) if isinstance(calls, TaggedCalls) else FAMILIES[family].texts
    signs = [text for text in sorted(texts, key=len, reverse=True) if text[0] in "<["]
    tokens = {text: 14 + at for at, text in enumerate(signs)}

    def special(text: str) -> str:
        for one, token in tokens.items():
            if one in text:
                before, _, behind = text.partition(one)
                return " ".join(filter(None, (special(before), f"<[{token}]>", special(behind))))
        return sign(text)

    offers = [Offer(name, schema) for name, schema in FUNCTIONS.items()]
    lark = f"start: auto\n{may_call(family, offers, special, several=True)}\n"
    check(lark)
    assert taken(lark, "Text, and <b>more</b> of it.") == (0, True)
    if (text := NATURAL.get(family)) is not None:
        for one, token in tokens.items():
            text = text.replace(one, chr(token))
        assert taken(lark, f"Well. {text}") == (0, True)


@pytest.mark.parametrize("family", ["llama3_json", "hermes"])
def test_text_stays_free_with_as_many_functions_as_a_request_may_have(family: str) -> None:
    lark = grammar(family, {f"function_{at}": PARAMETERS["get_weather"] for at in range(MOST)})
    matcher = LLMatcher(BYTES, lark, log_level=0, limits=limits())
    for byte in f'{PROSE}{{"type": "function", "name":\n"function_12 <tool_call {PROSE}'.encode():
        matcher.compute_bitmask()
        assert matcher.consume_token(byte), matcher.get_error()
    assert matcher.is_accepting()
