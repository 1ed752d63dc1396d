"""LiteLLM: the providers under which its users name a server of this kind."""

import json
from typing import Any

import litellm
import pytest

from tests.clients.conftest import Server
from tests.clients.task import PASSAGE, QUESTION, TOOL, Person, assert_called, assert_extracted, get_temperature


@pytest.fixture(params=["openai", "hosted_vllm"])
def settings(server: Server, request: pytest.FixtureRequest) -> dict[str, Any]:
    return {
        "model": f"{request.param}/{server.model}", "api_base": server.url, "api_key": server.key,
        "temperature": 0, "max_tokens": 100, "num_retries": 0,
    }  # fmt: skip


def answer(settings: dict[str, Any], stream: bool, messages: list[Any], **more: Any) -> Any:
    """The first choice, whole or put together from its pieces by LiteLLM."""
    whole = litellm.completion(**settings, messages=messages, stream=stream, **more)
    if stream:
        whole = litellm.stream_chunk_builder(list(whole), messages=messages)
    return whole.choices[0]


@pytest.mark.parametrize("stream", [False, True])
def test_calls_a_tool_and_answers_with_its_result(settings: dict[str, Any], stream: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    called = answer(settings, stream, messages, tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
    assert called.finish_reason == "tool_calls"
    call = called.message.tool_calls[0]
    arguments = json.loads(call.function.arguments)
    assert_called(call.function.name, arguments)
    # As its documentation does: the object itself goes back.
    messages += [called.message, {"role": "tool", "tool_call_id": call.id, "content": get_temperature(**arguments)}]
    assert answer(settings, stream, messages, tools=[TOOL], tool_choice="none").message.content


@pytest.mark.parametrize("stream", [False, True])
def test_fills_in_a_schema(settings: dict[str, Any], stream: bool) -> None:
    message = answer(settings, stream, [{"role": "user", "content": PASSAGE}], response_format=Person).message
    assert_extracted(json.loads(message.content))


def test_speaks_messages_and_responses(server: Server) -> None:
    """LiteLLM's own routes for them, as its proxy uses for Claude Code and Codex."""
    answered = litellm.responses(
        model=f"openai/{server.model}", api_base=server.url, api_key=server.key, input=QUESTION, max_output_tokens=20
    )
    assert answered.output[0].content[0].text
    answered = litellm.completion(
        model=f"anthropic/{server.model}", api_base=server.root, api_key=server.key, max_tokens=20,
        messages=[{"role": "user", "content": QUESTION}],
    )  # fmt: skip
    assert answered.choices[0].message.content
