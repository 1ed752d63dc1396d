"""The `openai` package's helpers for tools and schemas, beyond the calls that `make test` makes with it."""

import json

import openai
import pytest

from tests.clients.conftest import Server
from tests.clients.task import PASSAGE, QUESTION, TOOL, Person, assert_called, assert_extracted, get_temperature


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key=server.key, max_retries=0)


def test_embeddings_are_refused_by_name(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.NotFoundError, match="has no embeddings"):
        client.embeddings.create(model=server.model, input=QUESTION)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_temperature"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_calls_a_tool_and_answers_with_its_result(
    client: openai.OpenAI, server: Server, choice: str | dict[str, object], stream: bool
) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    settings = {"model": server.model, "temperature": 0, "max_completion_tokens": 100, "tools": [TOOL]}
    if stream:
        with client.chat.completions.stream(
            **settings, messages=messages, tool_choice=choice, parallel_tool_calls=False
        ) as events:
            answer = events.get_final_completion().choices[0]
    else:
        answer = client.chat.completions.create(
            **settings, messages=messages, tool_choice=choice, parallel_tool_calls=False
        ).choices[0]
    assert answer.finish_reason == "tool_calls"
    call = answer.message.tool_calls[0]
    arguments = json.loads(call.function.arguments)
    assert_called(call.function.name, arguments)
    messages += [
        answer.message.model_dump(exclude_none=True, exclude={"parsed": True, "tool_calls": {"__all__": {"index"}}}),
        {"role": "tool", "tool_call_id": call.id, "content": get_temperature(**arguments)},
    ]
    last = client.chat.completions.create(**settings, messages=messages, tool_choice="none").choices[0]
    assert last.message.content
    assert not last.message.tool_calls


def test_parses_a_pydantic_class(client: openai.OpenAI, server: Server) -> None:
    settings = {"model": server.model, "temperature": 0, "max_completion_tokens": 100, "response_format": Person}
    messages = [{"role": "user", "content": PASSAGE}]
    assert_extracted(client.chat.completions.parse(**settings, messages=messages).choices[0].message.parsed)
    with client.chat.completions.stream(**settings, messages=messages) as events:
        assert_extracted(events.get_final_completion().choices[0].message.parsed)


def test_responses_parse_a_pydantic_class(client: openai.OpenAI, server: Server) -> None:
    settings = {"model": server.model, "temperature": 0, "max_output_tokens": 100, "input": PASSAGE}
    assert_extracted(client.responses.parse(**settings, text_format=Person).output_parsed)
    with client.responses.stream(**settings, text_format=Person) as events:
        assert_extracted(events.get_final_response().output_parsed)


@pytest.mark.parametrize("stream", [False, True])
def test_responses_call_a_tool_and_answer_with_its_result(client: openai.OpenAI, server: Server, stream: bool) -> None:
    settings = {"model": server.model, "temperature": 0, "max_output_tokens": 100}
    tools = [{"type": "function", "strict": True, **TOOL["function"]}]
    turns = [{"role": "user", "content": QUESTION}]
    if stream:
        with client.responses.stream(
            **settings, input=turns, tools=tools, tool_choice="required", parallel_tool_calls=False
        ) as events:
            answer = events.get_final_response()
    else:
        answer = client.responses.create(
            **settings, input=turns, tools=tools, tool_choice="required", parallel_tool_calls=False
        )
    call = next(item for item in answer.output if item.type == "function_call")
    arguments = json.loads(call.arguments)
    assert_called(call.name, arguments)
    turns += [item.model_dump(exclude={"parsed_arguments"}) for item in answer.output]
    turns += [{"type": "function_call_output", "call_id": call.call_id, "output": get_temperature(**arguments)}]
    last = client.responses.create(**settings, input=turns, tools=tools, tool_choice="none")
    assert last.output_text
