"""Text that comes in pieces, for parsers that are written as if all of it were there.

A parser is a generator: it yields where it needs more text, and goes on once there is more. Each step depends on the
text alone and never on where it was cut, so any cut gives the same parts.
"""

import secrets
import string
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from plimsoll.runtime.server.parts import Called, Part, Said, Thought

T = TypeVar("T")
Wait = Generator[None, None, T]
Emit = Callable[[str], None]

_SHORT = string.ascii_letters + string.digits


def call_id() -> str:
    """A new id as OpenAI writes it."""
    return f"call_{secrets.token_hex(12)}"


def short_id() -> str:
    """A new id of nine letters and digits, the only form that Mistral's templates take."""
    return "".join(secrets.choice(_SHORT) for _ in range(9))


class Source:
    """The text so far, a place in it, and the parts that were found.

    Args:
        whole: hold a call back until it is complete, so that a broken one can still become text.
        new_id: makes the id of a call.
    """

    def __init__(self, *, whole: bool = False, new_id: Callable[[], str] = call_id) -> None:
        self.text, self.at = "", 0
        self.closed = False
        self.whole, self.new_id = whole, new_id
        self.parts: list[Part] = []
        self.calls = 0
        """Calls that were begun."""
        self._mark: int | None = None
        self._sign = ""
        self._gap = ""
        """White space at the end of what was said: shown once more is said, dropped before a call."""
        self._before = ""
        """The same, of what was said before the call."""
        self._pending: list[Part] | None = None
        self._thought = ""

    def feed(self, text: str) -> None:
        """Adds text."""
        keep = self.at if self._mark is None else min(self.at, self._mark)
        self.text = self.text[keep:] + text
        self.at -= keep
        if self._mark is not None:
            self._mark -= keep

    # What is written next.

    def more(self) -> Wait[bool]:
        """Waits for text beyond what is there; False at the end."""
        had = len(self.text) - self.at
        while len(self.text) - self.at == had:
            if self.closed:
                return False
            yield
        return True

    def peek(self) -> Wait[str]:
        """The next character; empty at the end."""
        while self.at == len(self.text):
            if not (yield from self.more()):
                return ""
        return self.text[self.at]

    def space(self) -> Wait[str]:
        """Takes white space."""
        taken = ""
        while True:
            rest = self.text[self.at :]
            stripped = rest.lstrip()
            size = len(rest) - len(stripped)
            taken += rest[:size]
            self.at += size
            if stripped or not (yield from self.more()):
                return taken

    def take(self, *words: str) -> Wait[str]:
        """Takes the longest of `words` that is written next; empty if none is."""
        while True:
            rest = self.text[self.at :]
            best = max((word for word in words if rest.startswith(word)), key=len, default="")
            longer = any(len(word) > len(best) and len(word) > len(rest) and word.startswith(rest) for word in words)
            if not longer or not (yield from self.more()):
                self.at += len(best)
                return best

    def until(self, words: Sequence[str], emit: Emit, most: int | None = None) -> Wait[str]:
        """Takes text up to the first of `words`, and that word.

        Args:
            words: none of them begins another.
            emit: gets the text as it comes.
            most: characters after which to give up.

        Returns:
            The word; empty at the end of the text, and where `most` was reached.
        """
        passed = 0
        while True:
            rest = self.text[self.at :]
            found = min(((place, word) for word in words if (place := rest.find(word)) >= 0), default=None)
            free = len(rest) - _held(rest, words) if found is None else found[0]
            if most is not None and passed + free > most:
                return ""
            passed += free
            self.at += free
            if free:
                emit(rest[:free])
            if found is not None:
                self.at += len(found[1])
                return found[1]
            if not (yield from self.more()):
                if rest := self.text[self.at :]:
                    self.at += len(rest)
                    emit(rest)
                return ""

    # What was found.

    def say(self, text: str) -> None:
        """Text of the answer."""
        text = self._gap + text
        shown = text.rstrip()
        self._gap = text[len(shown) :]
        if shown:
            self.parts.append(Said(shown))

    def think(self, text: str) -> None:
        """Text of a thought, without the white space around it."""
        text = self._thought + text
        shown = text.rstrip()
        self._thought = text[len(shown) :]
        if shown:
            self.parts.append(Thought(shown))

    def thought_over(self) -> None:
        """Forgets the white space at a thought's end."""
        self._thought = ""

    def call(self, name: str) -> None:
        """Begins a call."""
        self._before, self._gap = self._gap, ""
        part = Called(self.calls, "", self.new_id(), name)
        self.calls += 1
        if self.whole:
            self._pending = [part]
        else:
            self.mark()
            self.parts.append(part)

    def argue(self, piece: str) -> None:
        """A piece of the arguments of the call that was begun last, up to this place of the text."""
        if not piece:
            return
        if self._pending is not None:
            self._pending.append(Called(self.calls - 1, piece))
        else:
            self.mark()
            self.parts.append(Called(self.calls - 1, piece))

    def done(self) -> None:
        """The call is complete."""
        if self._pending is not None:
            self.parts += self._pending
            self._pending = None
        self._mark = None

    def mark(self, sign: str = "") -> None:
        """Remembers the place before `sign`, which was just taken: a call may begin there."""
        self._mark, self._sign = self.at - len(sign), sign

    def undo(self) -> None:
        """Where a call was not completed since the mark: says the sign, and has what follows it read again.

        What is out already cannot be taken back: there the text after it is read again.
        """
        if self._pending is not None:
            self._pending, self._gap = None, self._before
            self.calls -= 1
        if self._mark is not None:
            self.at, self._mark = self._mark + len(self._sign), None
            self.say(self._sign)

    def close(self) -> None:
        """Shows the white space at the end of an answer without calls."""
        if self._gap and not self.calls:
            self.parts.append(Said(self._gap))
        self._gap = ""


def _held(text: str, words: Sequence[str]) -> int:
    """Length of the longest end of `text` with which one of `words` begins."""
    for size in range(min(len(text), max(map(len, words)) - 1), 0, -1):
        if any(len(word) > size and text.endswith(word[:size]) for word in words):
            return size
    return 0
