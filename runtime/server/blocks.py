"""Parts of an answer to blocks: thoughts, texts and calls, each opened once, and closed before the next begins."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from plimsoll.runtime.server.parts import Called, Part, Said, Thought


@dataclass
class Block:
    """One thought, one text or one call of an answer, as far as it has come."""

    kind: Literal["thought", "text", "call"]
    index: int
    """Among the blocks of its answer."""
    id: str = ""
    """Of a call, as its reader has it."""
    name: str = ""
    """Of the function that a call is of."""
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All that came: of a call, its arguments as JSON text."""
        return "".join(self.pieces)


class Step(NamedTuple):
    """What happens to a block."""

    what: Literal["opens", "grows", "closes"]
    block: Block
    text: str = ""
    """What a block that grows gets."""


class Blocks:
    """Reads the parts of one answer.

    White space alone between thoughts and calls is no text of its own: models write line ends there.
    """

    def __init__(self) -> None:
        self.done: list[Block] = []
        self._open: Block | None = None
        self._call = -1
        self._held, self._held_as = "", ""
        """White space that may yet begin a block, and of which kind."""

    def add(self, parts: Iterable[Part]) -> Iterator[Step]:
        """The steps that `parts` add."""
        for part in parts:
            if isinstance(part, Called):
                yield from self._called(part)
            elif part.text:
                yield from self._written(part)

    def end(self) -> Iterator[Step]:
        """The last steps. An answer without anything else is one text, empty or of white space."""
        if self._open is None and not self.done:
            text = self._held if self._held_as == "text" else ""
            yield from self._begin(Block("text", 0))
            if text:
                yield self._grow(text)
        yield from self._close()

    def _called(self, part: Called) -> Iterator[Step]:
        if self._open is None or self._open.kind != "call" or part.index != self._call:
            self._call = part.index
            yield from self._begin(Block("call", 0, part.id, part.name))
        if part.arguments:
            yield self._grow(part.arguments)

    def _written(self, part: Thought | Said) -> Iterator[Step]:
        kind: Literal["thought", "text"] = "thought" if isinstance(part, Thought) else "text"
        text = part.text
        if self._open is None or self._open.kind != kind:
            text = self._held + text if self._held_as == kind else text
            if not text.strip():
                self._held, self._held_as = text, kind
                return
            yield from self._begin(Block(kind, 0))
        yield self._grow(text)

    def _begin(self, block: Block) -> Iterator[Step]:
        yield from self._close()
        block.index = len(self.done)
        self._open, self._held, self._held_as = block, "", ""
        yield Step("opens", block)

    def _grow(self, text: str) -> Step:
        assert self._open is not None
        self._open.pieces.append(text)
        return Step("grows", self._open, text)

    def _close(self) -> Iterator[Step]:
        if self._open is not None:
            closed, self._open = self._open, None
            self.done.append(closed)
            yield Step("closes", closed)
