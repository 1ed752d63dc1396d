"""Turns that a chat template refuses or drops, brought into an order that it takes.

Agents put instructions into the middle of a conversation and send several turns of one role in a row. Most templates
write them as they are. Others raise an error, or print only one system message. Templates without a system role (Gemma)
raise one for every instruction.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from plimsoll.checkpoint.chat_template import Message, shows

#: Between texts that were turns of their own.
SEPARATOR = "\n\n"

#: Renders a conversation by the template, each content in the form that the template takes.
Render = Callable[[list[Message]], str]


class SystemTurns:
    """Where one template takes system messages; whether it takes any is found out once."""

    def __init__(self) -> None:
        self._known: bool | None = None

    def arranged(self, messages: Sequence[Mapping[str, Any]], render: Render, plain: Render) -> list[Message]:
        """`messages` as they are where the template shows every system message, else moved.

        A template with a system role gets all of them in the first message. One without gets each at the beginning of
        the user's turn that follows it.

        Args:
            render: the template with the variables of this conversation.
            plain: the template without variables.
        """
        turns = [dict(message) for message in messages]
        places = [index for index, turn in enumerate(turns) if turn.get("role") == "system"]
        if not places:
            return turns
        if not self._has_role(plain):
            return _as_user(turns)
        if places == [0] or _all_shown(turns, places, render):
            return turns
        return _in_front(turns)

    def _has_role(self, plain: Render) -> bool:
        if self._known is None:
            user = {"role": "user", "content": "x"}
            shown = _all_shown([{"role": "system", "content": "x"}, user], [0, 1], plain)
            if not shown and not _all_shown([user], [0], plain):
                # The template needs variables: nothing is known of its roles.
                return True
            self._known = shown
        return self._known


def merged(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Neighbours of one role in one turn each, for templates that insist on user and assistant in turn.

    Calls of tools and their results stay turns of their own.
    """
    found: list[Message] = []
    for message in messages:
        last = found[-1] if found else None
        if last is not None and last.get("role") == message.get("role") and not (_of_tools(last) or _of_tools(message)):
            found[-1] = {**last, **message, "content": _joined(last.get("content"), message.get("content"))}
        else:
            found.append(dict(message))
    return found


def _of_tools(message: Mapping[str, Any]) -> bool:
    return message.get("role") == "tool" or bool(message.get("tool_calls"))


def _all_shown(turns: Sequence[Message], places: Sequence[int], render: Render) -> bool:
    """Whether the template takes these turns and prints the text of those at `places`."""
    marks = {place: f"plimsollturn{place}end" for place in places}
    marked = [{**turn, "content": marks.get(index, turn.get("content"))} for index, turn in enumerate(turns)]
    try:
        rendered = render(marked)
    except MemoryError:
        raise
    except Exception:  # The template refuses these turns, in its author's words.
        return False
    return all(shows(rendered, mark) for mark in marks.values())


def _in_front(turns: list[Message]) -> list[Message]:
    """All system messages in one, at the beginning."""
    systems = [turn for turn in turns if turn.get("role") == "system"]
    return merged(systems) + [turn for turn in turns if turn.get("role") != "system"]


def _as_user(turns: list[Message]) -> list[Message]:
    """The text of each system message at the beginning of the user's next turn; in one of its own where none comes."""
    found: list[Message] = []
    waiting: Message | None = None
    for turn in turns:
        if turn.get("role") == "system":
            content = turn.get("content") if waiting is None else _joined(waiting["content"], turn.get("content"))
            waiting = {"role": "user", "content": content}
        elif turn.get("role") == "user" and waiting is not None:
            found.append({**turn, "content": _joined(waiting["content"], turn.get("content"))})
            waiting = None
        else:
            found.append(turn)
    return found if waiting is None else [*found, waiting]


def _joined(first: Any, second: Any) -> Any:
    """Two contents as one: a string, or a list of parts where one of them is."""
    if not first or not second:
        return first or second
    if isinstance(first, str) and isinstance(second, str):
        return first + SEPARATOR + second
    return [*_parts(first), *_parts(second)]


def _parts(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
