"""LangChain: `ChatOpenAI` over chat completions and over responses, and `ChatAnthropic` over messages."""

from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI

from tests.clients.conftest import Server
from tests.clients.task import PASSAGE, QUESTION, Person, assert_called, assert_extracted, get_temperature

ROUTES = ("chat", "responses", "messages")


@pytest.fixture(params=ROUTES)
def llm(server: Server, request: pytest.FixtureRequest) -> BaseChatModel:
    common: dict[str, Any] = {"model": server.model, "api_key": server.key, "temperature": 0, "max_retries": 0}
    if request.param == "messages":
        return ChatAnthropic(base_url=server.root, max_tokens=100, **common)
    # At another address than OpenAI's, it asks for the usage of a stream only if it is set to.
    return ChatOpenAI(
        base_url=server.url, max_completion_tokens=100, stream_usage=True,
        use_responses_api=request.param == "responses", **common,
    )  # fmt: skip


def answer(model: Any, turns: list[Any], stream: bool) -> AIMessage:
    """The answer, whole or as the sum of its pieces."""
    if not stream:
        return model.invoke(turns)
    pieces = iter(model.stream(turns))
    whole = next(pieces)
    for piece in pieces:
        whole += piece
    return whole


@pytest.mark.parametrize("stream", [False, True])
def test_calls_a_tool_and_answers_with_its_result(llm: BaseChatModel, stream: bool) -> None:
    turns: list[Any] = [HumanMessage(QUESTION)]
    called = answer(llm.bind_tools([get_temperature], tool_choice="any", parallel_tool_calls=False), turns, stream)
    call = called.tool_calls[0]
    assert_called(call["name"], call["args"])
    turns += [called, ToolMessage(get_temperature(**call["args"]), tool_call_id=call["id"])]
    # Without a choice the model may call again, as in an agent's loop: only the text of a plain turn is sure.
    last = answer(llm, turns, stream)
    assert last.text
    assert last.usage_metadata["output_tokens"] > 0


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_fills_in_a_schema(llm: BaseChatModel, method: str) -> None:
    model = llm.with_structured_output(Person, method=method)
    assert_extracted(model.invoke(PASSAGE))
    assert_extracted(list(model.stream(PASSAGE))[-1])
