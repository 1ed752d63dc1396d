"""Calls whose arguments are JSON: an object with the function's name, or the name and then its arguments."""

import json
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

from plimsoll.runtime.server.parsing import json_scan
from plimsoll.runtime.server.parsing.source import Source, Wait

#: Longest name of a function; OpenAI's are up to 64 characters.
MOST_NAME = 128
_NAME = re.compile(r"[\w.:/-]+")


@dataclass(frozen=True)
class JsonCalls:
    """Objects such as `{"name": ..., "arguments": {...}}`, one alone, in a list or one after the other."""

    begins: tuple[str, ...]
    ends: tuple[str, ...] = ()
    name_keys: tuple[str, ...] = ("name",)
    argument_keys: tuple[str, ...] = ("arguments", "parameters")

    def read(self, src: Source, begin: str, known: Container[str]) -> Wait[None]:
        """Takes the calls after the sign `begin`. `known` are the functions of the request."""
        if begin == "{":
            # No sign but the object itself, so its name decides.
            src.at -= 1
        yield from src.space()
        many = yield from src.take("[")
        while True:
            yield from src.space()
            if not (yield from self._one(src, known if begin == "{" else None)):
                return
            src.done()
            src.mark()
            yield from src.space()
            if not (yield from src.take(",", ";")):
                break
        src.done()
        if many:
            yield from src.take("]")
            yield from src.space()
        yield from src.take(*self.ends)

    def _one(self, src: Source, known: Container[str] | None) -> Wait[bool]:
        """One object; True where it is a whole call."""
        if not (yield from src.take("{")):
            return False
        name, arguments, begun = "", "{}", False
        try:
            while True:
                yield from src.space()
                if (yield from src.take("}")):
                    break
                key = yield from json_scan.collected(src)
                yield from src.space()
                if not isinstance(key, str) or not (yield from src.take(":")):
                    return False
                yield from src.space()
                if key in self.argument_keys and name and (yield from src.peek()) == "{" and not begun:
                    begun = True
                    src.call(name)
                    if not (yield from json_scan.value(src, src.argue)):
                        return False
                else:
                    given = yield from json_scan.collected(src)
                    if key in self.name_keys and not name:
                        if (
                            not isinstance(given, str)
                            or not is_name(given)
                            or (known is not None and given not in known)
                        ):
                            return False
                        name = given
                    elif key in self.argument_keys:
                        arguments = as_arguments(given)
                yield from src.space()
                if not (yield from src.take(",")) and (yield from src.peek()) != "}":
                    return False
        except ValueError:
            return False
        if not name:
            return False
        if not begun:
            src.call(name)
            src.argue(arguments)
        return True


@dataclass(frozen=True)
class NamedCalls:
    """A function's name, a sign, and its arguments as a JSON object."""

    begins: tuple[str, ...]
    """Signs before a call, and before the section that holds all calls."""
    seps: tuple[str, ...]
    """Signs between the name and the arguments; `{` begins the arguments itself."""
    leads: tuple[str, ...] = ()
    """Signs that may stand before the name."""
    fences: tuple[str, ...] = ()
    """Signs that may stand around the arguments."""
    ends: tuple[str, ...] = ()
    id_sep: str = ""
    """Between the name and an id that the model gives."""
    lists: JsonCalls | None = None
    """How older models of the family write after the same sign: a list or an object."""

    def read(self, src: Source, begin: str, known: Container[str]) -> Wait[None]:
        """See `JsonCalls.read`."""
        yield from src.space()
        if self.lists is not None and (yield from src.peek()) in ("[", "{"):
            yield from self.lists.read(src, begin, known)
            return
        while True:
            yield from self._skip(src, self.begins + self.leads)
            if not (yield from self._one(src)):
                return
            src.done()
            src.mark()
            yield from self._skip(src, self.ends)
            if not (yield from src.take(*self.begins)):
                src.done()
                return

    def _skip(self, src: Source, words: Sequence[str]) -> Wait[None]:
        yield from src.space()
        while (yield from src.take(*words)):
            yield from src.space()

    def _one(self, src: Source) -> Wait[bool]:
        seps = self.seps + ((self.id_sep,) if self.id_sep else ())
        pieces: list[str] = []
        sep = yield from src.until(seps, pieces.append, MOST_NAME)
        if sep and sep == self.id_sep:
            # Clients get an id of ours: they may hold it to OpenAI's form.
            sep = yield from src.until(self.seps, lambda piece: None, MOST_NAME)
        name = "".join(pieces).strip()
        if not sep or not is_name(name):
            return False
        if sep == "{":
            src.at -= 1
        yield from self._skip(src, self.fences)
        if (yield from src.peek()) != "{":
            return False
        src.call(name)
        if not (yield from json_scan.value(src, src.argue)):
            return False
        yield from self._skip(src, self.fences)
        return True


def is_name(text: str) -> bool:
    """Whether a function may be called so."""
    return len(text) <= MOST_NAME and _NAME.fullmatch(text) is not None


def as_arguments(value: Any) -> str:
    """Arguments as JSON text: an object, the text of one, or nothing. Raises ValueError for others."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except RecursionError:
            raise ValueError from None
    if value in (None, ""):
        value = {}
    if not isinstance(value, dict):
        raise ValueError
    return json.dumps(value, ensure_ascii=False)
