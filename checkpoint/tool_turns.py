"""Conversations with tools, in the form that a chat template takes.

Some templates want a call's arguments as an object, others as text; some take only ids of nine characters; many know no
tools at all and drop them without a word. A template is rendered on marks first, and gets the first form that shows
every mark. Where none does, tools, calls and results become text, in the words that the Hermes and Qwen models were
trained on.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from plimsoll.checkpoint.chat_template import ChatTemplateError, Message

Tools = Sequence[Mapping[str, Any]]
#: Renders messages with tools, or with None. Raises ChatTemplateError.
Render = Callable[[list[Message], list[Message] | None], str]

_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


class ToolForm(NamedTuple):
    """How one conversation is given to a template."""

    place: str
    """Where the tools are: `variable`, `message` (a field of the system message) or `text`."""
    calls: str
    """How calls and results are given: `objects`, `strings` (arguments as text) or `text`."""
    short: bool = False
    """Ids of calls are cut to nine letters and digits."""


#: Forms of calls and results, the usual one first.
FORMS = (
    *(ToolForm("", *form) for form in product(("objects", "strings"), (False, True))),
    ToolForm("", "text"),
)


def rendered(messages: Sequence[Message], tools: Tools, render: Render) -> tuple[str, bool]:
    """The conversation as text, and whether the tools are described in our own words.

    Args:
        messages: with `tool_calls`, whose arguments are objects, and of role `tool`.
        render: the template.

    Raises:
        ChatTemplateError: the template refuses the conversation in every form.
    """
    has_turns = any(message.get("tool_calls") or message.get("role") == "tool" for message in messages)
    if not tools and not has_turns:
        return render(list(messages), None), False
    place = _place(tools, render) if tools else "variable"
    if not has_turns:
        return render(*_formed(messages, tools, ToolForm(place, "objects"))), place == "text"
    marked, marks = _marked(messages)
    refusal: ChatTemplateError | None = None
    for form in FORMS:
        form = form._replace(place=place)
        try:
            shown = render(*_formed(marked, tools, form))
            if all(mark in shown for mark in marks) or form.calls == "text":
                return render(*_formed(messages, tools, form)), place == "text"
        except ChatTemplateError as error:
            if isinstance(error.__cause__, MemoryError):
                raise
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def _place(tools: Tools, render: Render) -> str:
    """Where a template prints tools from; `text` where it prints none. A short conversation shows it."""
    mark = "plimsolltoolend"
    marked = [{**tools[0], "function": {**tools[0].get("function", {}), "name": mark}}]
    for place in ("variable", "message"):
        try:
            if mark in render(*_formed([{"role": "user", "content": "x"}], marked, ToolForm(place, "objects"))):
                return place
        except ChatTemplateError as error:
            if isinstance(error.__cause__, MemoryError):
                raise
    return "text"


def _formed(messages: Sequence[Message], tools: Tools, form: ToolForm) -> tuple[list[Message], list[Message] | None]:
    turns = _as_text(messages) if form.calls == "text" else [_turn(message, form) for message in messages]
    if form.place == "variable" or not tools:
        return turns, [dict(tool) for tool in tools] or None
    if form.place == "message":
        functions = json.dumps([tool.get("function", tool) for tool in tools], ensure_ascii=False)
        return _with_system(turns, "", {"tools": functions}), None
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return _with_system(turns, _HEAD + lines + _TAIL, {}), None


def _turn(message: Message, form: ToolForm) -> Message:
    calls = message.get("tool_calls")
    if form.short and message.get("tool_call_id"):
        message = {**message, "tool_call_id": _short(message["tool_call_id"])}
    if not calls:
        return dict(message)
    found = []
    for call in calls:
        function = call["function"]
        if form.calls == "strings" and not isinstance(function["arguments"], str):
            function = {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}
        call = {**call, "function": function}
        if form.short and "id" in call:
            call["id"] = _short(call["id"])
        found.append(call)
    return {**message, "tool_calls": found}


def _short(given: str) -> str:
    """An id of nine letters and digits, the same for the same id."""
    return given if len(given) == 9 and given.isalnum() else hashlib.sha256(given.encode()).hexdigest()[:9]


def _as_text(messages: Sequence[Message]) -> list[Message]:
    """Calls as text of the assistant, and results as text of the user, neighbours in one turn."""
    found: list[Message] = []
    after_result = False
    for message in messages:
        plain = {name: value for name, value in message.items() if name not in ("tool_calls", "tool_call_id")}
        result = message.get("role") == "tool"
        if result:
            text = f"<tool_response>\n{_text(message.get('content'))}\n</tool_response>"
            if after_result:
                found[-1]["content"] += f"\n{text}"
                continue
            plain = {"role": "user", "content": text}
        elif calls := message.get("tool_calls"):
            texts = [_text(message.get("content"))] if message.get("content") else []
            for call in calls:
                texts.append(f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>")
            plain["content"] = "\n".join(texts)
        found.append(plain)
        after_result = result
    return found


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content)
    return content or ""


def _with_system(messages: list[Message], text: str, fields: Mapping[str, Any]) -> list[Message]:
    """The messages, with `text` after the first system message's own and with its `fields`."""
    if not messages or messages[0].get("role") != "system":
        return [{"role": "system", "content": text, **fields}, *messages]
    first = messages[0]
    said = _text(first.get("content"))
    return [{**first, "content": "\n\n".join(filter(None, (said, text))), **fields}, *messages[1:]]


def _marked(messages: Sequence[Message]) -> tuple[list[Message], list[str]]:
    """The conversation with marks for names of functions, for a value of each call and for results; and the marks."""
    marks: list[str] = []

    def mark(what: str) -> str:
        marks.append(f"plimsoll{what}{len(marks)}end")
        return marks[-1]

    turns = []
    for message in messages:
        turn = dict(message)
        if calls := message.get("tool_calls"):
            turn["tool_calls"] = [
                {**call, "function": {"name": mark("call"), "arguments": {"given": mark("value")}}} for call in calls
            ]
        elif message.get("role") == "tool":
            turn["content"] = mark("result")
        turns.append(turn)
    return turns, marks
