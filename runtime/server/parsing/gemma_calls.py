"""Calls as FunctionGemma and Gemma 4 write them: `call:get_weather{city:<escape>Paris<escape>,days:3}`."""

import json
from collections.abc import Container
from dataclasses import dataclass

from plimsoll.runtime.server.parsing.json_calls import MOST_NAME, is_name
from plimsoll.runtime.server.parsing.source import Source, Wait
from plimsoll.runtime.server.parsing.tagged_calls import as_value

_LONGEST_KEY = 256


@dataclass(frozen=True)
class GemmaCalls:
    """`call:NAME{KEY:VALUE,...}` between two signs; text stands between two marks, or between quotes."""

    begins: tuple[str, ...]
    ends: tuple[str, ...]
    quotes: tuple[str, ...] = ("<escape>", '<|"|>', '"')

    def read(self, src: Source, begin: str, known: Container[str]) -> Wait[None]:
        """See `JsonCalls.read`."""
        while True:
            yield from src.space()
            pieces: list[str] = []
            if not (yield from src.take("call:")) or not (yield from src.until(("{",), pieces.append, MOST_NAME)):
                return
            name = "".join(pieces).strip()
            if not is_name(name):
                return
            src.call(name)
            src.at -= 1
            if not (yield from self._value(src)):
                return
            src.done()
            src.mark()
            yield from src.space()
            if (yield from src.take(*self.ends)):
                yield from src.space()
                src.mark()
            if not (yield from src.take(*self.begins)):
                src.done()
                return

    def _value(self, src: Source) -> Wait[bool]:
        """One value; False where it breaks off."""
        nested: list[str] = []
        while True:
            yield from src.space()
            if sign := (yield from src.take("{", "[")):
                src.argue(sign)
                nested.append("}" if sign == "{" else "]")
                yield from src.space()
                if not (yield from src.take(nested[-1])):
                    if sign == "{" and not (yield from self._key(src)):
                        return False
                    continue
                src.argue(nested.pop())
            elif quote := (yield from src.take(*self.quotes)):
                if not (yield from self._text(src, quote)):
                    return False
            elif not (yield from self._bare(src)):
                return False
            while nested:
                yield from src.space()
                if (yield from src.take(nested[-1])):
                    src.argue(nested.pop())
                elif (yield from src.take(",")):
                    src.argue(", ")
                    break
                else:
                    return False
            if not nested:
                return True
            if nested[-1] == "}" and not (yield from self._key(src)):
                return False

    def _key(self, src: Source) -> Wait[bool]:
        pieces: list[str] = []
        yield from src.space()
        quote = yield from src.take(*self.quotes)
        if quote and not (yield from src.until((quote,), pieces.append, _LONGEST_KEY)):
            return False
        if not (yield from src.until((":",), lambda piece: None if quote else pieces.append(piece), _LONGEST_KEY)):
            return False
        src.argue(json.dumps("".join(pieces).strip(), ensure_ascii=False) + ": ")
        return True

    def _text(self, src: Source, quote: str) -> Wait[bool]:
        src.argue('"')
        while True:
            words = (quote, "\\") if quote == '"' else (quote,)
            sign = yield from src.until(words, lambda text: src.argue(json.dumps(text, ensure_ascii=False)[1:-1]))
            if sign != "\\":
                break
            escaped = yield from src.peek()
            known = escaped in tuple('"\\/bfnrt')
            src.at += known
            src.argue("\\" + escaped if known else "\\\\")
        if sign:
            src.argue('"')
        return bool(sign)

    def _bare(self, src: Source) -> Wait[bool]:
        """A number, a word of JSON, or text that has no mark around it."""
        pieces: list[str] = []
        sign = yield from src.until((",", "}", "]"), pieces.append)
        text = "".join(pieces).strip()
        if not sign or not text:
            return False
        src.at -= 1
        src.argue(as_value(text))
        return True
