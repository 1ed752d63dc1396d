"""A system prompt and messages of Anthropic's kinds of block, to the messages of a chat."""

from typing import Any

import msgspec

from plimsoll.runtime.server.errors import ApiError, bad_request, invalid_value
from plimsoll.runtime.server.given import Given, must_be, objects, quoted

Message = dict[str, Any]
#: Claude Code begins its system prompt with such a line, which differs from turn to turn: with it, no prompt would
#: begin as the one before, and nothing of it would be found in the prefix cache.
VOLATILE = "x-anthropic-billing-header:"


def conversation(system: Any, messages: Any) -> list[Message]:
    """The messages of a chat, as a chat completion has them.

    Args:
        system: a string, or a list of text blocks.
        messages: turns of the user, the assistant and the system.

    Raises:
        ApiError: 400 that names the block and the field.
    """
    found = _system(system, "system")
    for turn in objects(messages, "messages"):
        role = turn.one_of("role", "user", "assistant", "system")
        if role == "system":
            found += _system(turn.get("content"), turn.at("content"))
        elif role == "user":
            found += _user(turn)
        else:
            found.append(_assistant(turn))
    return found


def _system(given: Any, path: str) -> list[Message]:
    """One message from the system, none where there is nothing to say."""
    if given is None or isinstance(given, str):
        texts = [given or ""]
    else:
        texts = [_written(block) for block in objects(given, path)]
    texts = [text.partition("\n")[2] if text.startswith(VOLATILE) else text for text in texts]
    texts = [text for text in texts if text]
    return [_said("system", texts)] if texts else []


def _written(block: Given) -> str:
    if block.text("type") != "text":
        raise _unsupported(block)
    return block.text("text")


def _user(turn: Given) -> list[Message]:
    """Results of tools are messages of their own; texts between them stay together."""
    content = turn.get("content")
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    found: list[Message] = []
    texts: list[str] = []
    for block in _blocks(turn):
        if block.text("type") != "tool_result":
            texts.append(_readable(block))
            continue
        if texts:
            found.append(_said("user", texts))
            texts = []
        # Some clients of SGLang name the call by `id`.
        name = "id" if "id" in block and "tool_use_id" not in block else "tool_use_id"
        found.append({"role": "tool", "tool_call_id": block.word(name), "content": _result(block)})
    if texts or not found:
        found.append(_said("user", texts))
    return found


def _said(role: str, texts: list[str]) -> Message:
    if len(texts) < 2:
        return {"role": role, "content": "".join(texts)}
    return {"role": role, "content": [{"type": "text", "text": text} for text in texts]}


def _assistant(turn: Given) -> Message:
    content = turn.get("content")
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    texts, thoughts, calls = [], [], []
    for block in _blocks(turn):
        kind = block.text("type")
        if kind == "thinking":
            thoughts.append(block.text("thinking"))
        elif kind == "tool_use":
            function = {"name": block.word("name"), "arguments": _json(block.object("input").fields)}
            calls.append({"id": block.word("id"), "type": "function", "function": function})
        elif kind != "redacted_thinking":
            # Only the server that redacted a thought can read it.
            texts.append(_readable(block))
    found: Message = {"role": "assistant", "content": "".join(texts)}
    if thought := "".join(thoughts):
        found["reasoning_content"] = thought
    return found | {"tool_calls": calls} if calls else found


def _result(block: Given) -> str:
    """What a tool gave back, as text; an error is marked as one."""
    content = block.get("content")
    if content is None or isinstance(content, str):
        text = content or ""
    else:
        text = "\n".join(_readable(part) for part in _blocks(block))
    failed = block.flag("is_error", default=False)
    return f"Error: {text}" if failed and not text.lower().startswith(("error", "<tool_use_error")) else text


def _readable(block: Given) -> str:
    """The text of a block: a text, or a document that is text."""
    kind = block.text("type")
    if kind == "text":
        return block.text("text")
    if kind == "document" and "source" in block and block.object("source").get("type") == "text":
        text = block.object("source").text("data")
        return f"{block.text('title')}\n{text}" if "title" in block else text
    raise _unsupported(block)


def _blocks(turn: Given) -> list[Given]:
    if not isinstance(turn.get("content"), list):
        raise must_be(turn.at("content"), "a string or a list of blocks", turn.get("content"))
    return list(turn.objects("content"))


def _json(value: Any) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except (msgspec.MsgspecError, OverflowError, RecursionError) as error:
        raise invalid_value(f"A tool_use's input cannot be written as JSON: {error}.", "messages") from None


def _unsupported(block: Given) -> ApiError:
    kind = block.text("type")
    return bad_request(
        f"{block.path}: blocks of type {quoted(kind)} are not supported here; this server reads text only.",
        block.path,
        "unsupported_parameter",
    )
