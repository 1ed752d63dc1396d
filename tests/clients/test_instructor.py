"""instructor: each of its modes that a server of this kind can serve, and its two steps around a tool."""

import json
from typing import Any, Literal

import anthropic
import instructor
import openai
import pytest
from pydantic import BaseModel

from tests.clients.conftest import Server
from tests.clients.task import PASSAGE, QUESTION, Person, assert_extracted, get_temperature

MODES = (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA)


@pytest.mark.parametrize("mode", MODES)
def test_fills_in_a_schema(server: Server, mode: instructor.Mode) -> None:
    client = instructor.from_openai(openai.OpenAI(base_url=server.url, api_key=server.key, max_retries=0), mode=mode)
    settings = {
        "model": server.model, "temperature": 0, "max_tokens": 100, "max_retries": 0, "response_model": Person,
        "messages": [{"role": "user", "content": PASSAGE}],
    }  # fmt: skip
    assert_extracted(client.create(**settings))
    assert_extracted(list(client.create_partial(**settings))[-1])


def test_fills_in_a_schema_over_messages(server: Server) -> None:
    client = instructor.from_anthropic(anthropic.Anthropic(base_url=server.root, api_key=server.key, max_retries=0))
    settings = {
        "model": server.model, "max_tokens": 100, "max_retries": 0, "response_model": Person,
        "messages": [{"role": "user", "content": PASSAGE}],
    }  # fmt: skip
    assert_extracted(client.create(**settings))
    assert_extracted(list(client.create_partial(**settings))[-1])


class GetTemperature(BaseModel):
    """The temperature in a city now."""

    city: Literal["Paris", "Rome"]
    unit: Literal["C"]


class Report(BaseModel):
    """A report of the weather."""

    degrees: Literal[20, 21, 22]


@pytest.mark.parametrize("stream", [False, True])
def test_calls_a_tool_and_answers_with_its_result(server: Server, stream: bool) -> None:
    client = instructor.from_openai(openai.OpenAI(base_url=server.url, api_key=server.key, max_retries=0))
    settings: dict[str, Any] = {"model": server.model, "temperature": 0, "max_tokens": 100, "max_retries": 0}
    turns: list[Any] = [{"role": "user", "content": QUESTION}]
    call, raw = client.create_with_completion(**settings, messages=turns, response_model=GetTemperature)
    asked = raw.choices[0].message
    assert json.loads(asked.tool_calls[0].function.arguments) == call.model_dump()
    result = {"role": "tool", "tool_call_id": asked.tool_calls[0].id, "content": get_temperature(**call.model_dump())}
    # instructor looks for the content of every turn.
    turns += [{"content": None} | asked.model_dump(exclude_none=True), result]
    settings |= {"messages": turns, "response_model": Report}
    report = list(client.create_partial(**settings))[-1] if stream else client.create(**settings)
    assert report.degrees in (20, 21, 22)
