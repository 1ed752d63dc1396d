"""Calls as Python writes them: `[get_weather(city="Paris"), get_time()]`."""

import json
from collections.abc import Container
from dataclasses import dataclass

from plimsoll.runtime.server.parsing.json_calls import MOST_NAME, is_name
from plimsoll.runtime.server.parsing.python_value import literal
from plimsoll.runtime.server.parsing.source import Source, Wait

_OPENS = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class PythonCalls:
    """A list of calls, or calls one after the other. `[` among `begins` stands for a list without any sign."""

    begins: tuple[str, ...]
    ends: tuple[str, ...] = ()

    def read(self, src: Source, begin: str, known: Container[str]) -> Wait[None]:
        """See `JsonCalls.read`."""
        yield from src.space()
        many = "[" if begin == "[" else (yield from src.take("["))
        while True:
            yield from src.space()
            pieces: list[str] = []
            if not (yield from src.until(("(",), pieces.append, MOST_NAME)):
                return
            name = "".join(pieces).strip()
            if not is_name(name) or (begin == "[" and name not in known):
                return
            src.call(name)
            if not (yield from self._arguments(src)):
                return
            src.done()
            src.mark()
            yield from src.space()
            if many:
                if not (yield from src.take(",")):
                    break
            else:
                yield from src.take(",", ";")
                yield from src.space()
                if (yield from src.take(*self.ends)) or not (yield from src.peek()):
                    src.done()
                    return
        src.done()
        yield from src.take("]")
        yield from src.space()
        yield from src.take(*self.ends)

    def _arguments(self, src: Source) -> Wait[bool]:
        """Keyword arguments and the bracket after them; each is passed on once it is complete."""
        src.argue("{")
        first = True
        while True:
            yield from src.space()
            if (yield from src.take(")")):
                src.argue("}")
                return True
            pieces: list[str] = []
            if not (yield from src.until(("=",), pieces.append, MOST_NAME)):
                return False
            key = "".join(pieces).strip()
            if not key.isidentifier():
                return False
            text = yield from _literal(src)
            try:
                value = literal(text)
            except ValueError:
                return False
            src.argue(("" if first else ", ") + json.dumps(key, ensure_ascii=False) + ": " + value)
            first = False
            if not (yield from src.take(",")) and (yield from src.peek()) != ")":
                return False


def _literal(src: Source) -> Wait[str]:
    """Takes text up to the comma or the bracket that ends a value; empty where it breaks off."""
    taken: list[str] = []
    nested: list[str] = []
    while character := (yield from src.peek()):
        if not nested and character in ",)":
            return "".join(taken)
        if character in "'\"":
            quoted = yield from _quoted(src)
            if not quoted:
                return ""
            taken.append(quoted)
            continue
        if character in _OPENS:
            nested.append(_OPENS[character])
        elif nested and character == nested[-1]:
            nested.pop()
        taken.append(character)
        src.at += 1
    return ""


def _quoted(src: Source) -> Wait[str]:
    """A string with its quotes, one or three of them; empty where it breaks off."""
    quote = yield from src.take(*("'", "''", "'''") if (yield from src.peek()) == "'" else ('"', '""', '"""'))
    if len(quote) == 2:
        return quote
    taken = [quote]
    while True:
        sign = yield from src.until((quote, "\\"), taken.append)
        if not sign:
            return ""
        taken.append(sign)
        if sign == quote:
            return "".join(taken)
        taken.append((yield from src.peek()))
        src.at += 1 if taken[-1] else 0
