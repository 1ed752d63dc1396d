"""The events of thoughts, texts and calls, fed as parts: their order, and the clients' own types."""

import itertools
import json
from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from plimsoll.runtime.server.errors import ApiError
from plimsoll.runtime.server.messages_api.encoder import Encoder as MessageEncoder
from plimsoll.runtime.server.messages_api.objects import MessageUsage
from plimsoll.runtime.server.parts import Called, Part, Said, Thought
from plimsoll.runtime.server.responses import TokenLogprob
from plimsoll.runtime.server.responses_api.encoder import Encoder as ResponseEncoder
from plimsoll.runtime.server.responses_api.objects import InputDetails, OutputDetails, ResponseUsage
from plimsoll.runtime.server.responses_api.thoughts import unsealed
from tests.support.dialects import MessageFollower, ResponseFollower, events_of

USAGE = ResponseUsage(7, InputDetails(4), 5, OutputDetails(2), 12)
HEAD: dict[str, Any] = {
    "created_at": 1, "model": "m", "instructions": None, "tools": [], "tool_choice": "auto",
    "parallel_tool_calls": True, "temperature": 1.0, "top_p": 1.0, "max_output_tokens": None, "text": {},
    "reasoning": {}, "metadata": {}, "top_logprobs": 0, "user": None, "prompt_cache_key": None,
    "safety_identifier": None,
}  # fmt: skip
RESPONSE_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
MESSAGE_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
FULL: list[Part] = [
    Thought("I must "), Thought("look.\n"), Said("\n\n"), Called(0, "", "call_a", "weather"), Called(0, '{"city"'),
    Called(0, ': "Oslo"}'), Said("\n"), Called(1, "{}", "call_b", "clock"), Said("\n"), Said("So it is."),
]  # fmt: skip
ANSWERS: dict[str, list[Part]] = {
    "nothing": [],
    "white space": [Said(" \n")],
    "a text": [Said("One "), Said("two\u2028\n\n three")],
    "a text that begins with a line end": [Said("\n"), Said("One")],
    "a call with text before it": [Said("Wait."), Called(0, '{"a": 1}', "c", "f")],
    "all": FULL,
}


def response(parts: list[Part], *, cut: bool = False) -> tuple[dict[str, Any], Any]:
    """The final response of a stream, and the one that is given whole."""
    encoder = ResponseEncoder(HEAD, "0f", encrypted=True)
    data = encoder.begin() + b"".join(encoder.add([part]) for part in parts) + encoder.end(cut=cut, usage=USAGE)
    events = events_of(data)
    for event in events:
        RESPONSE_EVENT.validate_python(event)
    return ResponseFollower().follow(events), encoder.response


def message(parts: list[Part], *, show_thoughts: bool = True, **end: Any) -> tuple[dict[str, Any], Any]:
    """The message that a stream makes, and the one that is given whole."""
    encoder = MessageEncoder("0f", "m", show_thoughts=show_thoughts)
    data = encoder.begin(MessageUsage(3, 4, 0)) + b"".join(encoder.add([part]) for part in parts)
    data += encoder.end(**({"cut": False, "stop_sequence": None} | end), usage=MessageUsage(3, 4, 5))
    events = events_of(data)
    for event in events:
        if event["type"] != "ping":
            MESSAGE_EVENT.validate_python(event)
    return MessageFollower().follow(events), encoder.message


@pytest.mark.parametrize("parts", ANSWERS.values(), ids=ANSWERS)
def test_the_events_of_a_response_come_in_order_and_make_its_final_object(parts: list[Part]) -> None:
    final, _ = response(parts)
    Response.model_validate(final)
    ids = [item["id"] for item in final["output"]]
    assert len(set(ids)) == len(ids) > 0
    assert {item["status"] for item in final["output"]} == {"completed"}


@pytest.mark.parametrize("parts", ANSWERS.values(), ids=ANSWERS)
def test_the_events_of_a_message_come_in_order_and_make_the_whole_message(parts: list[Part]) -> None:
    streamed, whole = message(parts)
    Message.model_validate(streamed)
    assert streamed == json.loads(json.dumps(streamed))
    assert [block["type"] for block in streamed["content"]] == [
        type(block).__struct_config__.tag for block in whole.content
    ]


def test_thoughts_texts_and_calls_become_items_of_their_own() -> None:
    output = response(FULL)[0]["output"]
    assert [item["type"] for item in output] == ["reasoning", "function_call", "function_call", "message"]
    assert output[0]["content"] == [{"type": "reasoning_text", "text": "I must look.\n"}]
    assert [(item["name"], item["arguments"], item["call_id"]) for item in output[1:3]] == [
        ("weather", '{"city": "Oslo"}', "call_a"), ("clock", "{}", "call_b"),
    ]  # fmt: skip
    assert output[3]["content"][0]["text"] == "\nSo it is."


def test_thoughts_texts_and_calls_become_blocks_of_their_own() -> None:
    streamed, _ = message(FULL)
    assert [block["type"] for block in streamed["content"]] == ["thinking", "tool_use", "tool_use", "text"]
    assert streamed["content"][1] == {
        "type": "tool_use", "id": "call_a", "name": "weather", "input": {"city": "Oslo"},
    }  # fmt: skip
    assert streamed["stop_reason"] == "tool_use"


@pytest.mark.parametrize("parts", ANSWERS.values(), ids=ANSWERS)
def test_pieces_of_any_size_make_the_same_items(parts: list[Part]) -> None:
    pieces: list[Part] = []
    for part in parts:
        if isinstance(part, Called):
            pieces.append(Called(part.index, "", part.id, part.name))
            pieces += [Called(part.index, letter) for letter in part.arguments]
        else:
            pieces += [type(part)(letter) for letter in part.text]
    assert response(pieces)[0]["output"] == response(parts)[0]["output"]
    assert message(pieces)[0]["content"] == message(parts)[0]["content"]


def test_an_answer_that_is_cut_says_so_of_itself_and_of_its_last_item() -> None:
    parts: list[Part] = [Said("Wait."), Called(0, '{"a": "b', "c", "f")]
    final, _ = response(parts, cut=True)
    assert (final["status"], final["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert [item["status"] for item in final["output"]] == ["completed", "incomplete"]
    encoder = MessageEncoder("0f", "m", show_thoughts=True)
    encoder.add(parts)
    encoder.end(cut=True, stop_sequence=None, usage=MessageUsage(1, 0, 1))
    assert encoder.message.stop_reason == "max_tokens"
    assert encoder.message.content[1].input == {"a": "b"}  # type: ignore[union-attr]


def test_calls_that_have_no_id_get_one_each() -> None:
    parts: list[Part] = [Called(0, "{}", "", "f"), Called(1, "{}", "", "f")]
    first, second = response(parts)[0]["output"]
    assert first["call_id"] != second["call_id"]
    first, second = message(parts)[0]["content"]
    assert first["id"] != second["id"]


def test_a_reasoning_item_carries_its_thought_for_the_next_request() -> None:
    [item] = response([Thought("Let me see: ∑")])[0]["output"]
    assert unsealed(item["encrypted_content"]) == "Let me see: ∑"
    assert unsealed("gAAAA-of-another-server") == unsealed("plimsoll:%") == unsealed("plimsoll:/w==") == ""


def test_thoughts_that_are_not_asked_for_leave_a_block_without_text() -> None:
    streamed, whole = message([Thought("secret"), Said("done")], show_thoughts=False)
    assert [block["type"] for block in streamed["content"]] == ["thinking", "text"]
    assert streamed["content"][0]["thinking"] == whole.content[0].thinking == ""


def test_a_stop_sequence_is_named() -> None:
    streamed, _ = message([Said("a")], stop_sequence="END")
    assert (streamed["stop_reason"], streamed["stop_sequence"]) == ("stop_sequence", "END")


def test_a_stream_that_fails_ends_with_a_failed_response() -> None:
    encoder = ResponseEncoder(HEAD, "0f", encrypted=False)
    data = encoder.begin() + encoder.add([Said("One")]) + encoder.fail(ApiError(503, "Gone.", code="engine_dead"))
    final = ResponseFollower().follow(events_of(data))
    assert final["error"] == {"code": "engine_dead", "message": "Gone."}


def test_log_probabilities_stay_with_the_text_they_are_of() -> None:
    entries = [TokenLogprob(str(n), -0.5, [48 + n], []) for n in range(4)]
    encoder = ResponseEncoder(HEAD, "0f", encrypted=False)
    data = encoder.begin() + encoder.add([Thought("t")], entries[:1]) + encoder.add([], entries[1:2])
    data += encoder.add([Said("ab")], entries[2:3]) + encoder.add([Said("c")], entries[3:])
    events = events_of(data + encoder.end(cut=False, usage=USAGE))
    deltas = [event["logprobs"] for event in events if event["type"] == "response.output_text.delta"]
    assert [[entry["token"] for entry in found] for found in deltas] == [["1", "2"], ["3"]]
    [done] = [event for event in events if event["type"] == "response.output_text.done"]
    assert done["logprobs"] == list(itertools.chain(*deltas))
