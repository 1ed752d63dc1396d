"""Calls with a pair of tags for each argument; the function's schema says which values are text."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from plimsoll.runtime.server.parsing.json_calls import MOST_NAME, is_name
from plimsoll.runtime.server.parsing.python_value import literal
from plimsoll.runtime.server.parsing.source import Source, Wait

_LONGEST_KEY = 256


@dataclass(frozen=True)
class TaggedCalls:
    """`<function=NAME><parameter=KEY>VALUE</parameter></function>` and the like."""

    begins: tuple[str, ...]
    """Signs before a call; more of them may follow."""
    name_begins: tuple[str, ...]
    """Signs before the name; empty where it follows `begins`."""
    name_ends: tuple[str, ...]
    """Signs after the name. One that begins an argument or ends the call stays."""
    key_begins: tuple[str, ...]
    key_end: str
    value_begin: str
    value_ends: tuple[str, ...]
    """Signs after a value; those after the first stay, for models that leave out the first."""
    call_ends: tuple[str, ...]
    ends: tuple[str, ...] = ()

    def read(self, src: Source, begin: str, known: Mapping[str, Any]) -> Wait[None]:
        """See `JsonCalls.read`; `known` has each function's schema of its parameters."""
        named = begin in self.name_begins
        while True:
            if not named and self.name_begins:
                yield from src.space()
                if not (yield from src.take(*self.name_begins)):
                    return
            if not (yield from self._one(src, known)):
                return
            src.done()
            src.mark()
            yield from src.space()
            if self.ends and (yield from src.take(*self.ends)):
                yield from src.space()
                src.mark()
            follows = yield from src.take(*self.begins, *self.name_begins)
            if not follows:
                src.done()
                return
            named = follows in self.name_begins

    def _one(self, src: Source, known: Mapping[str, Any]) -> Wait[bool]:
        pieces: list[str] = []
        sign = yield from src.until(self.name_ends, pieces.append, MOST_NAME)
        name = "".join(pieces).strip().strip('"')
        if not sign or not is_name(name):
            return False
        if sign in self.key_begins or sign in self.call_ends:
            src.at -= len(sign)
        schema = known.get(name)
        fields = schema.get("properties") if isinstance(schema, Mapping) else None
        fields = fields if isinstance(fields, Mapping) else {}
        src.call(name)
        src.argue("{")
        first = True
        while True:
            yield from src.space()
            if (yield from src.take(*self.call_ends)):
                src.argue("}")
                return True
            if not (yield from src.take(*self.key_begins)):
                return False
            pieces = []
            if not (yield from src.until((self.key_end,), pieces.append, _LONGEST_KEY)):
                return False
            key = "".join(pieces).strip().removeprefix('"').split('"')[0]
            if self.value_begin:
                yield from src.space()
                if not (yield from src.take(self.value_begin)):
                    return False
            src.argue(("" if first else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
            first = False
            if not (yield from self._value(src, wanted(fields.get(key)))):
                return False

    def _value(self, src: Source, wanted: str) -> Wait[bool]:
        """One value: of text as it comes, others once they are complete."""
        text = _Lines(src.argue) if wanted == "text" else None
        pieces: list[str] = []
        sign = yield from src.until(self.value_ends, pieces.append if text is None else text.add)
        if sign and text is not None:
            text.end()
        elif sign:
            src.argue(as_value("".join(pieces).strip(), wanted))
        if sign and sign != self.value_ends[0]:
            src.at -= len(sign)
        return bool(sign)


class _Lines:
    """Text of a value as a JSON string, without the line breaks next to its tags."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit, self._first, self._held = emit, True, ""
        emit('"')

    def add(self, text: str) -> None:
        """More of the text."""
        if self._first:
            self._first, text = False, text.removeprefix("\n")
        text = self._held + text
        shown = text.removesuffix("\n")
        self._held = text[len(shown) :]
        self._emit(json.dumps(shown, ensure_ascii=False)[1:-1])

    def end(self) -> None:
        """The value is complete."""
        self._emit('"')


def as_value(text: str, wanted: str = "any") -> str:
    """What a model wrote between tags, as JSON: a value of JSON or of Python where it is one, else a string."""
    try:
        return literal(text)
    except ValueError:
        return json.dumps(text, ensure_ascii=False)


def wanted(schema: Any) -> str:
    """`text` where the schema takes strings alone, else `any`."""
    if not isinstance(schema, Mapping):
        return "any"
    kind = schema.get("type")
    kinds = kind if isinstance(kind, list) else [kind]
    values = schema.get("enum")
    if isinstance(values, list) and values and kind is None:
        return "text" if all(isinstance(value, str) for value in values) else "any"
    return "text" if kinds == ["string"] else "any"
