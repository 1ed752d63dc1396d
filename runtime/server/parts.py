"""An answer in parts: what the model thought, what it says, and the functions that it calls."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of the answer itself."""

    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """A piece of a function call."""

    index: int
    """Of the call among those of its answer."""
    arguments: str
    """A piece of the arguments, as JSON text."""
    id: str = ""
    """With the first piece of a call alone."""
    name: str = ""
    """With the first piece of a call alone."""


Part = Thought | Said | Called


class PartReader(Protocol):
    """Splits the text of one answer into parts, however the text is cut. Nothing is lost, and nothing raises: a
    malformed call is `Said`."""

    def read(self, text: str) -> list[Part]:
        """The parts that `text` adds."""

    def end(self) -> list[Part]:
        """What was held back; the answer is over."""


class PlainReader:
    """All text is the answer."""

    def read(self, text: str) -> list[Part]:
        """`text` as one part."""
        return [Said(text)] if text else []

    def end(self) -> list[Part]:
        """Nothing is held back."""
        return []


def merged(parts: Iterable[Part]) -> list[Part]:
    """Neighbours of one kind, and of one call, as one part."""
    found: list[Part] = []
    for part in parts:
        last = found[-1] if found else None
        if isinstance(part, Called):
            if isinstance(last, Called) and last.index == part.index:
                found[-1] = replace(last, arguments=last.arguments + part.arguments)
                continue
        elif isinstance(last, type(part)):
            found[-1] = replace(part, text=last.text + part.text)
            continue
        found.append(part)
    return found
