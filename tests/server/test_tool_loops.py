"""A tool loop through the openai and anthropic clients' newer APIs, on the real model held to a call by a grammar."""

import json
from typing import Any

from tests.support.dialects import MessageFollower, ResponseFollower
from tests.support.endpoint import Endpoint

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION: dict[str, Any] = {"type": "function", "name": "weather", "description": "Tells it.", "parameters": SCHEMA}
TOOL: dict[str, Any] = {"name": "weather", "description": "Tells it.", "input_schema": SCHEMA}
ASKED: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
#: Whatever the model would say, it says a call in the words of Hermes.
CALL = r'<tool_call>\n\{"name": "weather", "arguments": \{"city": "(Oslo|Rome)"\}\}\n</tool_call>'
HELD: dict[str, Any] = {"structured_outputs": {"regex": CALL}, "temperature": 0}


def test_a_response_calls_a_function_and_reads_its_output(smol: Endpoint) -> None:
    settings: dict[str, Any] = {"tools": [FUNCTION], "max_output_tokens": 60}
    first = smol.openai.responses.create(model="smol", input=ASKED, extra_body=HELD, **settings)
    [call] = first.output
    assert call.type == "function_call"
    assert call.name == "weather"
    assert json.loads(call.arguments)["city"] in ("Oslo", "Rome")
    streamed = ResponseFollower().follow(smol.events("/v1/responses", {"input": ASKED, **settings, **HELD}))
    [again] = streamed["output"]
    assert (again["name"], json.loads(again["arguments"])) == ("weather", json.loads(call.arguments))
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "Snow, minus 3 degrees."}
    items: list[Any] = [*ASKED, call.to_dict(), output]
    last = smol.openai.responses.create(model="smol", input=items, **settings)
    assert last.usage.input_tokens > first.usage.input_tokens  # type: ignore[union-attr]


def test_a_message_calls_a_tool_and_reads_its_result(smol: Endpoint) -> None:
    settings: dict[str, Any] = {"tools": [TOOL], "max_tokens": 60}
    first = smol.anthropic.messages.create(model="smol", messages=ASKED, extra_body=HELD, **settings)
    assert first.stop_reason == "tool_use"
    [call] = first.content
    assert call.type == "tool_use"
    assert call.name == "weather"
    assert call.input["city"] in ("Oslo", "Rome")
    streamed = MessageFollower().follow(smol.events("/v1/messages", {"messages": ASKED, **settings, **HELD}))
    [again] = streamed["content"]
    assert (again["name"], again["input"], streamed["stop_reason"]) == ("weather", call.input, "tool_use")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Snow, minus 3 degrees."}
    messages: list[Any] = [
        *ASKED, {"role": "assistant", "content": [call.to_dict()]}, {"role": "user", "content": [result]},
    ]  # fmt: skip
    before = first.usage.input_tokens + (first.usage.cache_read_input_tokens or 0)
    after = smol.anthropic.messages.count_tokens(model="smol", messages=messages, tools=[TOOL])
    assert after.input_tokens > before
