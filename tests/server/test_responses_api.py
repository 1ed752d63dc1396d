"""/v1/responses through the real openai client, on the real model and a tiny one."""

import json
from typing import Any

import openai
import pytest

from plimsoll.runtime.server.errors import ApiError
from plimsoll.runtime.server.responses_api.tools import tools
from tests.support.dialects import ResponseFollower
from tests.support.endpoint import Endpoint, eventually

QUESTION = "What is the capital of France? Answer in one short sentence."
PATH = "/v1/responses"


def test_answers_the_question_and_counts_its_tokens(smol: Endpoint) -> None:
    answer = smol.openai.responses.create(
        model="smol", input=QUESTION, instructions="Be brief.", temperature=0, max_output_tokens=30
    )
    assert "Paris" in answer.output_text
    assert (answer.status, answer.error, answer.incomplete_details) == ("completed", None, None)
    assert (answer.object, answer.model, answer.instructions) == ("response", "smol", "Be brief.")
    assert (answer.temperature, answer.max_output_tokens, answer.store) == (0, 30, False)  # type: ignore[attr-defined]
    assert answer.id.startswith("resp_")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.usage.output_tokens_details.reasoning_tokens == 0


def test_the_same_conversation_gets_the_same_answer_as_a_chat(smol: Endpoint) -> None:
    chat = smol.openai.chat.completions.create(
        model="smol", temperature=0, max_tokens=12,
        messages=[
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."},
            {"role": "assistant", "content": "Red."}, {"role": "user", "content": "Another."},
        ],
    )  # fmt: skip
    items: list[Any] = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Name a colour."}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Red.", "annotations": []}]},
        {"role": "user", "content": "Another."},
    ]
    answer = smol.openai.responses.create(
        model="smol", instructions="Be brief.", input=items, temperature=0, max_output_tokens=12
    )
    assert answer.output_text == chat.choices[0].message.content
    assert answer.usage is not None
    assert chat.usage is not None
    assert answer.usage.input_tokens == chat.usage.prompt_tokens


def test_streams_the_same_response_as_it_answers_whole(smol: Endpoint) -> None:
    settings: dict[str, Any] = {"input": QUESTION, "temperature": 0, "max_output_tokens": 24}
    whole = smol.openai.responses.create(model="smol", **settings)
    streamed = ResponseFollower().follow(smol.events(PATH, settings))
    assert streamed["output"][0]["content"] == [part.to_dict() for part in whole.output[0].content]  # type: ignore[union-attr]
    assert streamed["usage"]["output_tokens"] == whole.usage.output_tokens  # type: ignore[union-attr]
    with smol.openai.responses.stream(model="smol", **settings) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == whole.output_text


def test_an_answer_that_reaches_its_limit_is_incomplete(tiny: Endpoint) -> None:
    body = {"input": "hi", "max_output_tokens": 3, "ignore_eos": True}
    final = ResponseFollower().follow(tiny.events(PATH, body))
    assert (final["status"], final["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert final["output"][-1]["status"] == "incomplete"
    whole = tiny.openai.responses.create(model="tiny", input="hi", max_output_tokens=3, extra_body={"ignore_eos": True})
    assert whole.status == "incomplete"
    eventually(tiny.idle)


def test_the_output_may_be_sent_back_as_it_came_and_without_ids(tiny: Endpoint) -> None:
    first = tiny.openai.responses.create(model="tiny", input="hi", max_output_tokens=4, temperature=0)
    replayed: list[Any] = [{"role": "user", "content": "hi"}, *(item.to_dict() for item in first.output)]
    bare = [{name: value for name, value in item.items() if name not in ("id", "status")} for item in replayed]
    counts = set()
    for items in (replayed, bare):
        items.append({"role": "user", "content": "and?"})
        answer = tiny.openai.responses.create(model="tiny", input=items, max_output_tokens=1)
        counts.add(answer.usage.input_tokens)  # type: ignore[union-attr]
    assert len(counts) == 1


def test_log_probabilities_come_where_they_are_asked_for(tiny: Endpoint) -> None:
    settings: dict[str, Any] = {"input": "hi", "max_output_tokens": 4, "temperature": 0, "top_logprobs": 2}
    settings["include"] = ["message.output_text.logprobs"]
    answer = tiny.openai.responses.create(model="tiny", extra_body={"ignore_eos": True}, **settings)
    entries = answer.output[0].content[0].logprobs  # type: ignore[union-attr]
    assert len(entries) == 4
    assert all(len(entry.top_logprobs) == 2 for entry in entries)
    streamed = ResponseFollower().follow(tiny.events(PATH, settings | {"ignore_eos": True}))
    assert streamed["output"][0]["content"][0]["logprobs"] == [entry.to_dict() for entry in entries]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "whole conversation"),
        ({"conversation": "conv_1"}, "conversation", "whole conversation"),
        ({"background": True}, "background", "Stream"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "instructions"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]", "send the item itself"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0]", "web_search_call"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
         "input[0].content[0]", "input_image"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role", "robot"),
        ({"input": [{"role": "user", "content": 3}]}, "input[0].content", "found a number"),
        ({"input": [{"content": "x"}]}, "input[0].type", "must be a string"),
        ({"input": 7}, "input", "string or a list"),
        ({"input": None}, "input", "You must provide"),
        ({"input": []}, "input", "at least 1"),
        ({"tool_choice": "required"}, "tool_choice", "needs a function"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice", "web_search"),
        ({"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}, "tool_choice", "web_search"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "string"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "json_schema"),
        ({"text": {"colour": "red"}}, "text.colour", "not supported"),
        ({"include": ["everything"]}, "include", "message.output_text.logprobs"),
        ({"truncation": "most"}, "truncation", "disabled (found 'most')"),
        ({"max_output_tokens": 0}, "max_output_tokens", "1"),
        ({"n": 2}, "n", "1"),
        ({"colour": "red"}, "colour", "Unrecognized"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(tiny: Endpoint, fields: dict[str, Any], param: str, words: str) -> None:
    status, answer = tiny.post(PATH, {"model": "tiny", "input": "hi"} | fields)
    assert status == 400
    assert answer["error"]["param"] == param
    assert words in answer["error"]["message"]


def test_a_conversation_that_cannot_fit_blames_the_input(tiny: Endpoint) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        tiny.openai.responses.create(model="tiny", input="word " * 5000)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")
    assert "messages" not in caught.value.message


def test_another_model_is_not_found(tiny: Endpoint) -> None:
    with pytest.raises(openai.NotFoundError):
        tiny.openai.responses.create(model="gpt-5", input="hi")


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        ({"truncation": "auto", "service_tier": "auto", "store": True}, "service_tier, truncation"),
        ({"text": {"verbosity": "low", "format": {"type": "text"}}, "background": False}, "text.verbosity"),
        ({"tools": [{"type": "web_search"}, {"type": "custom", "name": "x"}]}, "tools[].custom, tools[].web_search"),
        ({"include": ["file_search_call.results"]}, "include[].file_search_call.results"),
        ({"stream_options": {"include_obfuscation": False}, "client_metadata": {}}, "client_metadata, stream_options"),
        ({"previous_response_id": None, "conversation": None, "reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"metadata": {"a": "b"}, "user": "me", "prompt_cache_key": "k", "parallel_tool_calls": False}, None),
    ],
)  # fmt: skip
def test_what_clients_always_send_is_accepted_and_what_has_no_effect_is_named(
    tiny: Endpoint, fields: dict[str, Any], ignored: str | None
) -> None:
    body = {"model": "tiny", "input": "hi", "max_output_tokens": 1} | fields
    answer = tiny.http.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers.get("x-plimsoll-ignored") == ignored
    found = answer.json()
    assert (found["store"], found["truncation"], found["background"]) == (False, "disabled", False)
    assert all(found[name] == fields[name] for name in ("metadata", "user", "prompt_cache_key") if name in fields)


def test_nothing_is_stored_and_the_server_says_so(tiny: Endpoint) -> None:
    for ask in (tiny.openai.responses.retrieve, tiny.openai.responses.delete, tiny.openai.responses.cancel):
        with pytest.raises(openai.NotFoundError, match="stores no responses"):
            ask("resp_1")


def test_a_function_of_a_namespace_is_called_by_both_names_and_replayed(smol: Endpoint) -> None:
    function: dict[str, Any] = {
        "type": "function", "name": "get_app_state", "strict": True,
        "parameters": {"type": "object", "properties": {"app": {"enum": ["Chrome"]}}, "required": ["app"],
                       "additionalProperties": False},
    }  # fmt: skip
    space = {"type": "namespace", "name": "mcp__computer", "description": "Control.", "tools": [function]}
    settings: dict[str, Any] = {"temperature": 0, "max_output_tokens": 60, "tools": [space], "tool_choice": "required"}
    settings |= {"parallel_tool_calls": False}
    whole = smol.openai.responses.create(model="smol", input="Look at Chrome.", **settings)
    call = whole.output[0].to_dict()  # type: ignore[union-attr]
    assert (call["name"], call["namespace"]) == ("get_app_state", "mcp__computer")
    assert json.loads(call["arguments"]) == {"app": "Chrome"}
    assert whole.tools[0].to_dict() == space
    streamed = ResponseFollower().follow(smol.events(PATH, settings | {"input": "Look at Chrome."}))
    assert streamed["output"][0]["namespace"] == "mcp__computer"
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "A blank page."}
    asked = [{"role": "user", "content": "Look at Chrome."}]
    flat = {key: value for key, value in call.items() if key != "namespace"} | {"name": "mcp__computer__get_app_state"}
    counted = [
        smol.post(PATH, {"input": [*asked, item, result], "max_output_tokens": 1})[1]["usage"]["input_tokens"]
        for item in (call, flat)
    ]
    assert counted[0] == counted[1]


def test_a_choice_names_a_function_by_its_namespace() -> None:
    space = {"type": "namespace", "name": "web", "tools": [{"type": "function", "name": "look"}, {"type": "custom"}]}
    found = tools([space], {"type": "function", "name": "look", "namespace": "web"})
    assert found.choice == {"type": "function", "function": {"name": "web__look"}}
    assert found.skipped == ["namespace.custom"]
    with pytest.raises(ApiError, match="tool_choice names 'look', which is no function in tools"):
        tools([space], {"type": "function", "name": "look"})
