"""The `anthropic` package's own loop over tools, and its structured outputs."""

import anthropic
import pytest

from tests.clients.conftest import Server
from tests.clients.task import PASSAGE, QUESTION, TOOL, Person, assert_called, assert_extracted, get_temperature

FUNCTION = TOOL["function"]
TOOLS = [
    {"name": FUNCTION["name"], "description": FUNCTION["description"], "input_schema": FUNCTION["parameters"]},
]


@pytest.fixture(scope="module")
def client(server: Server) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.root, api_key=server.key, max_retries=0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_temperature"}])
def test_calls_a_tool_and_answers_with_its_result(
    client: anthropic.Anthropic, server: Server, choice: dict[str, str], stream: bool
) -> None:
    settings = {"model": server.model, "max_tokens": 100, "tools": TOOLS, "extra_body": {"temperature": 0}}
    turns = [{"role": "user", "content": QUESTION}]
    if stream:
        with client.messages.stream(
            **settings, messages=turns, tool_choice=choice | {"disable_parallel_tool_use": True}
        ) as events:
            answer = events.get_final_message()
    else:
        answer = client.messages.create(
            **settings, messages=turns, tool_choice=choice | {"disable_parallel_tool_use": True}
        )
    assert answer.stop_reason == "tool_use"
    call = next(block for block in answer.content if block.type == "tool_use")
    assert_called(call.name, call.input)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": get_temperature(**call.input)}
    turns += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    last = client.messages.create(**settings, messages=turns, tool_choice={"type": "none"})
    assert "".join(block.text for block in last.content if block.type == "text")


def test_parses_a_pydantic_class(client: anthropic.Anthropic, server: Server) -> None:
    settings = {
        "model": server.model, "max_tokens": 100, "extra_body": {"temperature": 0}, "output_format": Person,
        "messages": [{"role": "user", "content": PASSAGE}],
    }  # fmt: skip
    assert_extracted(client.messages.parse(**settings).parsed_output)
    with client.messages.stream(**settings) as events:
        assert_extracted(events.get_final_message().parsed_output)
