"""LlamaIndex: `OpenAILike`, with function calling and with JSON schemas."""

import asyncio

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

from tests.clients.conftest import Server
from tests.clients.task import PASSAGE, QUESTION, TEMPERATURE, Person, assert_called, assert_extracted, get_temperature


@pytest.fixture
def llm(server: Server) -> OpenAILike:
    return OpenAILike(
        model=server.model, api_base=server.url, api_key=server.key, is_chat_model=True, context_window=2048,
        is_function_calling_model=True, temperature=0, max_tokens=100, max_retries=0,
    )  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_calls_a_tool_and_answers_with_its_result(llm: OpenAILike, stream: bool) -> None:
    tool = FunctionTool.from_defaults(get_temperature)
    turns = [ChatMessage(role="user", content=QUESTION)]
    if stream:
        called = list(llm.stream_chat_with_tools([tool], chat_history=turns, tool_required=True))[-1]
    else:
        called = llm.chat_with_tools([tool], chat_history=turns, tool_required=True)
    call = llm.get_tool_calls_from_response(called)[0]
    assert_called(call.tool_name, call.tool_kwargs)
    result = tool.call(**call.tool_kwargs)
    assert str(TEMPERATURE) in str(result)
    turns += [
        called.message,
        ChatMessage(role="tool", content=str(result), additional_kwargs={"tool_call_id": call.tool_id}),
    ]
    if stream:
        assert list(llm.stream_chat(turns))[-1].message.content
    else:
        assert llm.chat(turns).message.content


def test_fills_in_a_schema(llm: OpenAILike) -> None:
    llm.should_use_structured_outputs = True
    prompt = PromptTemplate("{passage}")
    assert_extracted(llm.structured_predict(Person, prompt, passage=PASSAGE))
    assert_extracted(list(llm.stream_structured_predict(Person, prompt, passage=PASSAGE))[-1])
    assert_extracted(asyncio.run(llm.astructured_predict(Person, prompt, passage=PASSAGE)))


def test_fills_in_a_schema_by_a_call(llm: OpenAILike) -> None:
    assert_extracted(llm.structured_predict(Person, PromptTemplate("{passage}"), passage=PASSAGE))
    # Its streams ask for `tool_choice: auto`, so that the model decides, unless the program names a choice.
    program = FunctionCallingProgram.from_defaults(
        output_cls=Person, prompt_template_str="{passage}", llm=llm, tool_choice="required"
    )
    assert_extracted(list(program.stream_call(passage=PASSAGE))[-1])
