"""The loop of tools through the real openai client, with a model that no one trained for it."""

import json
from typing import Any

import pytest

from plimsoll.runtime.server.answer_grammar import answer_grammar
from plimsoll.runtime.server.errors import ApiError
from plimsoll.runtime.server.functions import Reading
from plimsoll.runtime.server.protocol import ChatCompletionRequest
from tests.support.endpoint import Endpoint

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "get_time"}}
ASKED: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
SETTINGS: dict[str, Any] = {"model": "smol", "temperature": 0, "max_tokens": 60, "tools": [WEATHER, TIME]}


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_call_that_must_be_made_is_made_and_its_result_is_answered(smol: Endpoint, choice: Any) -> None:
    ask = smol.openai.chat.completions.create
    whole = ask(**SETTINGS, messages=ASKED, tool_choice=choice, parallel_tool_calls=False).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert whole.message.content is None
    (call,) = whole.message.tool_calls
    assert call.function.name in ("get_weather", "get_time")
    assert json.loads(call.function.arguments) in ({"city": "Paris"}, {"city": "Rome"}, {})
    chunks = list(ask(**SETTINGS, messages=ASKED, tool_choice=choice, parallel_tool_calls=False, stream=True))
    pieces = [piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or ()]
    assert [chunk.choices[0].delta.content for chunk in chunks] == [None] * len(chunks)
    assert {piece.index for piece in pieces} == {0}
    assert [bool(piece.id and piece.function.name) for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert "".join(piece.function.arguments for piece in pieces) == call.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    result = {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 21 degrees."}
    answer = ask(**SETTINGS, messages=[*ASKED, whole.message.model_dump(), result]).choices[0]
    assert answer.finish_reason in ("stop", "length")
    assert answer.message.content


def test_a_call_that_a_model_chooses_to_make_is_one_and_a_broken_one_is_text(smol: Endpoint) -> None:
    ask = smol.openai.chat.completions.create
    text = 'Let me see.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    for said, called in ((text, True), (text[:60], False)):
        forced = {"guided_choice": [said]}
        settings = {**SETTINGS, "tools": [WEATHER], "tool_choice": "auto"}
        whole = ask(**settings, messages=ASKED, extra_body=forced).choices[0]
        if called:
            assert (whole.message.content, whole.finish_reason) == ("Let me see.", "tool_calls")
            assert json.loads(whole.message.tool_calls[0].function.arguments) == {"city": "Rome"}
        else:
            assert (whole.message.content, whole.message.tool_calls, whole.finish_reason) == (said, None, "stop")


def test_signs_of_thoughts_are_text_where_the_template_knows_none(smol: Endpoint) -> None:
    ask = smol.openai.chat.completions.create
    text = "<think>\nHm.\n</think>\n\nYes."
    answer = ask(model="smol", messages=ASKED, extra_body={"guided_choice": [text]}).choices[0]
    assert answer.message.content == text


def test_a_schema_that_cannot_be_compiled_is_refused_where_it_is_strict(smol: Endpoint) -> None:
    bad = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?<=x)y"}}}}
    body = {"model": "smol", "messages": ASKED, "max_tokens": 40, "tool_choice": "required"}
    status, answer = smol.post(
        "/v1/chat/completions", body | {"tools": [{"type": "function", "function": bad | {"strict": True}}]}
    )
    assert (status, answer["error"]["param"]) == (400, "tools")
    assert smol.post("/v1/chat/completions", body | {"tools": [{"type": "function", "function": bad}]})[0] == 200


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"type": "object", "properties": {"a": {"type": "unknown_type"}}}, "unknown_type"),
        ({"type": "object", "properties": ["a"]}, "properties"), ({"type": "array"}, "object"),
        ({"type": "object", "required": True}, "required"), ({"properties": {"a": {"enum": 5}}}, "enum"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}, "$defs/none"),
    ],
)  # fmt: skip
def test_a_schema_that_is_wrong_is_refused_whatever_the_family(
    smol: Endpoint, parameters: dict[str, Any], words: str
) -> None:
    request = ChatCompletionRequest.model_validate({
        "messages": ASKED, "tools": [TIME, {"type": "function", "function": {"name": "f", "parameters": parameters}}],
        "tool_choice": "required",
    })  # fmt: skip
    for family in ("hermes", "mistral", "pythonic", "qwen3_coder", "deepseek_v32", "glm45", "gemma", "kimi_k2"):
        request.read_by(Reading(tool_parser=family))
        with pytest.raises(ApiError) as caught:
            answer_grammar(request, None, smol.service.serving.tokenizer, lambda step: None)
        assert caught.value.param == "tools"
        assert "function 'f' has an invalid 'parameters' schema" in caught.value.message
        assert words in caught.value.message


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0", "function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "pattern"),
        ({"tools": [TIME, TIME]}, "tools", "get_time"),
        ({"tool_choice": "required"}, "tool_choice", "tools is empty"),
        ({"tools": [TIME], "tool_choice": NAMED}, "tool_choice", "Tool 'get_weather' not found"),
    ],
)
def test_wrong_tools_are_named(smol: Endpoint, fields: dict[str, Any], param: str, words: str) -> None:
    status, answer = smol.post("/v1/chat/completions", {"model": "smol", "messages": ASKED} | fields)
    assert status == 400
    assert answer["error"]["param"].startswith(param.split(".")[0])
    assert words in answer["error"]["message"]
