"""/v1/messages through the real anthropic client, on the real model and a tiny one."""

from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from plimsoll.runtime.server.errors import ApiError
from plimsoll.runtime.server.messages_api.conversation import conversation
from tests.support.dialects import MessageFollower
from tests.support.endpoint import Endpoint, eventually, serving

ASKED: list[Any] = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]
PATH = "/v1/messages"


def test_answers_the_question_and_counts_its_tokens(smol: Endpoint) -> None:
    settings: dict[str, Any] = {"model": "smol", "messages": ASKED, "system": "Be brief."}
    answer = smol.anthropic.messages.create(**settings, max_tokens=30, extra_body={"temperature": 0})
    assert [block.type for block in answer.content] == ["text"]
    assert "Paris" in answer.content[0].text  # type: ignore[union-attr]
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "smol")
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert answer.id.startswith("msg_")
    counted = smol.anthropic.messages.count_tokens(**settings).input_tokens
    assert counted == answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)
    assert answer.usage.output_tokens > 3


def test_the_same_conversation_gets_the_same_answer_as_a_chat(smol: Endpoint) -> None:
    chat = smol.openai.chat.completions.create(
        model="smol", temperature=0, max_tokens=12,
        messages=[
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."},
            {"role": "assistant", "content": "Red."}, {"role": "user", "content": "Another."},
        ],
    )  # fmt: skip
    messages: list[Any] = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "Name a colour.", "cache_control": {"type": "ephemeral"}}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
        {"role": "user", "content": "Another."},
    ]
    system: list[Any] = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.0; cch=a1b2c;"},
        {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
    ]
    answer = smol.anthropic.messages.create(
        model="smol", system=system, messages=messages, max_tokens=12, extra_body={"temperature": 0}
    )
    assert answer.content[0].text == chat.choices[0].message.content  # type: ignore[union-attr]
    used = answer.usage
    assert chat.usage is not None
    assert used.input_tokens + (used.cache_read_input_tokens or 0) == chat.usage.prompt_tokens


def test_streams_the_same_message_as_it_answers_whole(smol: Endpoint) -> None:
    settings: dict[str, Any] = {"messages": ASKED, "max_tokens": 24}
    whole = smol.anthropic.messages.create(model="smol", **settings, extra_body={"temperature": 0})
    streamed = MessageFollower().follow(smol.events(PATH, settings | {"temperature": 0}))
    assert streamed["content"][0]["text"] == whole.content[0].text  # type: ignore[union-attr]
    assert streamed["usage"]["output_tokens"] == whole.usage.output_tokens
    with smol.anthropic.messages.stream(model="smol", **settings, extra_body={"temperature": 0}) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text  # type: ignore[union-attr]
    assert final.stop_reason == whole.stop_reason


def test_an_answer_that_reaches_its_limit_says_so(tiny: Endpoint) -> None:
    body = {"messages": ASKED, "max_tokens": 3, "ignore_eos": True}
    assert MessageFollower().follow(tiny.events(PATH, body))["stop_reason"] == "max_tokens"
    assert tiny.post(PATH, {"model": "tiny"} | body)[1]["stop_reason"] == "max_tokens"
    eventually(tiny.idle)


def test_a_stop_sequence_ends_the_answer_and_is_named(smol: Endpoint) -> None:
    settings: dict[str, Any] = {"messages": ASKED, "max_tokens": 30, "extra_body": {"temperature": 0}}
    whole = smol.anthropic.messages.create(model="smol", **settings).content[0].text  # type: ignore[union-attr]
    stop = whole.split()[3]
    cut = smol.anthropic.messages.create(model="smol", **settings, stop_sequences=[stop])
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop)
    assert cut.content[0].text == whole[: whole.index(stop)]  # type: ignore[union-attr]


def test_an_answer_that_the_client_began_is_continued(smol: Endpoint) -> None:
    begun: list[Any] = [*ASKED, {"role": "assistant", "content": "The capital of France is"}]
    answer = smol.anthropic.messages.create(model="smol", messages=begun, max_tokens=3, extra_body={"temperature": 0})
    assert answer.content[0].text.startswith(" Paris")  # type: ignore[union-attr]


def test_a_repeated_prompt_is_read_from_the_cache(smol: Endpoint) -> None:
    long: list[Any] = [{"role": "user", "content": "Say this again. " * 60}]
    for _ in range(2):
        used = smol.anthropic.messages.create(model="smol", messages=long, max_tokens=1).usage
    assert used.cache_read_input_tokens
    assert used.input_tokens
    counted = smol.anthropic.messages.count_tokens(model="smol", messages=long).input_tokens
    assert counted == used.cache_read_input_tokens + used.input_tokens


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "blocks of type 'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": {}}]}, "found an object"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "must be a list"),
        ({"max_tokens": None}, "max_tokens"),
        ({"system": 7}, "system"),
        ({"system": [{"type": "image"}]}, "system[0]"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}], "tool_choice": {"type": "any"}},
         "web_search_20250305"),
        ({"tool_choice": {"type": "tool", "name": "f"}}, "tool_choice names 'f'"),
        ({"thinking": {"type": "deep"}}, "thinking.type"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]}]},
         "tool_result"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_in_anthropics_words(tiny: Endpoint, fields: dict[str, Any], words: str) -> None:
    status, answer = tiny.post(PATH, {"model": "tiny", "messages": ASKED, "max_tokens": 2} | fields)
    assert status == 400
    assert set(answer) == {"type", "error", "request_id"}
    assert (answer["type"], answer["error"]["type"]) == ("error", "invalid_request_error")
    assert words in answer["error"]["message"]


def test_what_has_no_effect_is_named(tiny: Endpoint) -> None:
    tools = [{"type": "web_search_20250305", "name": "web_search"}]
    body = {"model": "tiny", "messages": ASKED, "max_tokens": 1, "tools": tools, "next_year": 1, "mcp_servers": []}
    body["thinking"] = {"type": "enabled", "budget_tokens": 1024}
    named = "mcp_servers, next_year, thinking.budget_tokens, tools[].web_search_20250305"
    for stream in (False, True):
        answer = tiny.http.post(PATH, json=body | {"stream": stream})
        assert answer.headers["x-plimsoll-ignored"] == named


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"user_id": "me"}, "service_tier": "auto", "context_management": {"edits": []}, "speed": "fast"},
        {"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}]},
        {"thinking": {"type": "adaptive", "display": "omitted"}, "a_field_of_next_year": [1]},
        {"messages": [*ASKED, {"role": "system", "content": "Be kind."}, *ASKED]},
        {"messages": [
            *ASKED,
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "x"}, {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "Paris."}]},
            *ASKED,
        ]},
        {"messages": [{"role": "user", "content": [
            {"type": "document", "title": "Note", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}
        ]}]},
    ],
)  # fmt: skip
def test_what_claude_code_sends_is_accepted(tiny: Endpoint, fields: dict[str, Any]) -> None:
    body = {"model": "tiny", "messages": ASKED, "max_tokens": 1} | fields
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "claude-code-20250219"}
    answer = tiny.http.post(f"{PATH}?beta=true", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["request-id"] == answer.headers["x-request-id"]


def test_keys_come_as_x_api_key_or_as_bearer(tiny_checkpoint: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("right\n")
    with serving(tiny_checkpoint, api_keys_file=str(keys)) as endpoint:
        settings: dict[str, Any] = {"model": "tiny", "messages": ASKED, "max_tokens": 1}
        for key in ({"api_key": "right"}, {"auth_token": "right"}):
            client = anthropic.Anthropic(base_url=endpoint.root, max_retries=0, **key)
            assert client.messages.create(**settings).type == "message"
        wrong = anthropic.Anthropic(base_url=endpoint.root, max_retries=0, api_key="wrong")
        with pytest.raises(anthropic.AuthenticationError) as caught:
            wrong.messages.create(**settings)
        assert caught.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
        assert caught.value.request_id


@pytest.mark.parametrize(
    ("path", "headers", "content", "status", "kind"),
    [
        (PATH, {"Content-Type": "text/plain"}, b"{}", 415, "invalid_request_error"),
        (PATH, {}, b"{", 400, "invalid_request_error"),
        (PATH, {}, b'{"model": "claude-9", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}', 404,
         "not_found_error"),
        (PATH, {}, b" " * (2 << 20), 413, "request_too_large"),
        (PATH, {"Origin": "https://evil.example"}, b"{}", 403, "permission_error"),
        (f"{PATH}/batches", {}, b"{}", 404, "not_found_error"),
    ],
)  # fmt: skip
def test_every_layer_refuses_in_anthropics_shape(
    tiny: Endpoint, path: str, headers: dict[str, str], content: bytes, status: int, kind: str
) -> None:
    answer = httpx.post(f"{tiny.root}{path}", content=content, headers={"Content-Type": "application/json"} | headers)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == kind
    assert answer.json()["request_id"] == answer.headers["request-id"]


def test_a_result_of_a_tool_names_its_call_by_either_field() -> None:
    for name in ("tool_use_id", "id"):
        block = {"type": "tool_result", name: "call_1", "content": "8"}
        (message,) = conversation(None, [{"role": "user", "content": [block]}])
        assert message == {"role": "tool", "tool_call_id": "call_1", "content": "8"}
    with pytest.raises(ApiError, match="tool_use_id"):
        conversation(None, [{"role": "user", "content": [{"type": "tool_result", "content": "8"}]}])
