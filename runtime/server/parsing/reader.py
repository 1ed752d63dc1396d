"""The reader of one answer: first what the model thinks, then what it says and calls."""

from collections.abc import Mapping
from typing import Any

from plimsoll.runtime.server.parsing.formats import Family
from plimsoll.runtime.server.parsing.source import Source, Wait, call_id, short_id
from plimsoll.runtime.server.parsing.thoughts import Thoughts
from plimsoll.runtime.server.parts import Part, Said, merged


class AnswerReader:
    """See `PartReader`.

    Args:
        thoughts: how the model marks its thoughts; None leaves them in the text.
        thinking: the prompt ends inside of a thought.
        family: how the model calls functions; None leaves calls in the text.
        functions: names of the request's functions, with the schema of each one's parameters.
        whole: hold a call back until it is complete: a broken one comes back as text.
    """

    def __init__(
        self,
        *,
        thoughts: Thoughts | None = None,
        thinking: bool = False,
        family: Family | None = None,
        functions: Mapping[str, Any] | None = None,
        whole: bool = False,
    ) -> None:
        self._thinking = thinking
        self._thoughts, self._family, self._functions = thoughts, family, functions or {}
        self._src = Source(whole=whole, new_id=short_id if family is not None and family.short_ids else call_id)
        self._parse = self._parts()
        self._plain = False
        """Nothing is left to look for."""

    def read(self, text: str) -> list[Part]:
        """The parts that `text` adds."""
        if self._plain:
            return [Said(text)] if text else []
        if not text:
            return []
        self._src.feed(text)
        return self._go()

    def end(self) -> list[Part]:
        """What was held back; the answer is over."""
        if self._plain:
            return []
        self._src.closed = True
        return self._go()

    def _go(self) -> list[Part]:
        next(self._parse, None)
        found, self._src.parts = self._src.parts, []
        return merged(found)

    def _parts(self) -> Wait[None]:
        src = self._src
        if self._thoughts is not None:
            yield from self._think(self._thoughts)
        said = () if self._thoughts is None else self._thoughts.said
        begins = () if self._family is None else self._family.begins
        words = (*begins, *said)
        if not words:
            self._plain = True
            # What came with the end of the thought.
            src.say(src.text[src.at :])
            src.close()
            return
        while sign := (yield from src.until(words, src.say)):
            if self._family is None or sign not in begins:
                continue
            src.mark(sign)
            yield from self._family.calls.read(src, sign, self._functions)
            src.undo()
        src.close()

    def _think(self, thoughts: Thoughts) -> Wait[None]:
        src = self._src
        src.mark()
        yield from src.space()
        begun = yield from src.take(thoughts.begin, *thoughts.begins)
        if not begun and not self._thinking:
            src.undo()
            return
        src.done()
        yield from src.space()
        yield from src.until((thoughts.end,), src.think)
        src.thought_over()
        yield from src.space()
