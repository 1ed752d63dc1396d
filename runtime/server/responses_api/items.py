"""The input of a response, items of many kinds, to the messages of a chat."""

from typing import Any

import msgspec

from plimsoll.runtime.server.errors import ApiError, bad_request
from plimsoll.runtime.server.given import Given, must_be, objects, quoted
from plimsoll.runtime.server.responses_api.thoughts import unsealed
from plimsoll.runtime.server.responses_api.tools import in_space

Message = dict[str, Any]
TEXTS = ("input_text", "output_text", "text")
NOT_KEPT = {
    "item_reference": "this server stores nothing that an id could name: send the item itself",
    "compaction": "only the server that compacted a conversation can read it: send its items",
}


def conversation(instructions: str | None, given: Any) -> list[Message]:
    """The messages of a chat, as a chat completion has them.

    Args:
        instructions: the first message, from the system.
        given: `input` of the request: a string, or a list of items.

    Raises:
        ApiError: 400 that names the item and the field.
    """
    messages: list[Message] = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not isinstance(given, list):
        raise must_be("input", "a string or a list of items", given)
    turns = _Turns(messages)
    for item in objects(given, "input"):
        turns.add(item)
    return turns.messages


class _Turns:
    """Reads items in order. Those of one turn of the assistant, a thought, a text and calls, become one message."""

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages
        self._thought = ""
        self._turn: Message | None = None

    def add(self, item: Given) -> None:
        kind = item.text("type", "message" if "role" in item else None)
        if kind == "message":
            self._message(item)
        elif kind == "reasoning":
            self._end()
            self._thought = _thought(item)
        elif kind in ("function_call", "custom_tool_call"):
            self._call(item, kind)
        elif kind in ("function_call_output", "custom_tool_call_output"):
            self._end()
            output = _text(_said(item, "output"))
            self.messages.append({"role": "tool", "tool_call_id": item.word("call_id"), "content": output})
        else:
            raise _unsupported(item, kind)

    def _end(self) -> None:
        self._turn, self._thought = None, ""

    def _assistant(self) -> Message:
        if self._turn is None:
            self._turn = {"role": "assistant", "content": ""}
            if self._thought:
                self._turn["reasoning_content"] = self._thought
            self.messages.append(self._turn)
        return self._turn

    def _message(self, item: Given) -> None:
        role = item.one_of("role", "user", "assistant", "system", "developer")
        content = _said(item, "content")
        if role != "assistant":
            self._end()
            self.messages.append({"role": role, "content": content})
            return
        if self._turn is not None:
            self._end()
        self._assistant()["content"] = _text(content)

    def _call(self, item: Given, kind: str) -> None:
        # A custom tool takes text in place of JSON; what it took is replayed as an object that holds it.
        arguments = item.text("arguments") if kind == "function_call" else _custom(item.text("input"))
        name = item.word("name")
        if "namespace" in item:
            name = in_space(item.word("namespace"), name)
        call = {"name": name, "arguments": arguments}
        calls = self._assistant().setdefault("tool_calls", [])
        calls.append({"id": item.word("call_id"), "type": "function", "function": call})


def _custom(text: str) -> str:
    return msgspec.json.encode({"input": text}).decode()


def _said(item: Given, name: str) -> str | list[Message]:
    """A text, or the text parts of a list."""
    value = item.get(name)
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise must_be(item.at(name), "a string or a list of text parts", value)
    parts = [{"type": "text", "text": _part(part)} for part in item.objects(name)]
    return parts if len(parts) > 1 else _text(parts)


def _part(part: Given) -> str:
    kind = part.text("type")
    if kind == "refusal":
        return part.text("refusal")
    if kind not in TEXTS:
        raise bad_request(
            f"{part.path}: parts of type {quoted(kind)} are not supported; only text is ({', '.join(TEXTS)}).",
            part.path,
            "unsupported_parameter",
        )
    return part.text("text")


def _text(content: str | list[Message]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _thought(item: Given) -> str:
    """The text of a thought, else what this server sealed of it, else its summary."""
    for name, kind in (("content", "reasoning_text"), ("encrypted_content", ""), ("summary", "summary_text")):
        if name not in item:
            continue
        if not kind:
            text = unsealed(item.text(name))
        else:
            text = "".join(part.text("text") for part in item.objects(name) if part.one_of("type", kind, "text"))
        if text:
            return text
    return ""


def _unsupported(item: Given, kind: str) -> ApiError:
    why = NOT_KEPT.get(kind, "only messages, reasoning, function calls and their outputs are")
    return bad_request(
        f"{item.path}: items of type {quoted(kind)} are not supported: {why}.", item.path, "unsupported_parameter"
    )
