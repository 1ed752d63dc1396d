"""One region of large pages for all weights of a model: a token reads all of them, and looks each page up."""

import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

import torch
from torch import Tensor

from plimsoll.runtime.machine.heap import advise_huge_pages

_LARGE, _LINE = 2 << 20, 64
_NO_RESERVE = 0x4000
"""MAP_NORESERVE: the system needs no memory for what is never written to."""


class _Region:
    """Memory that is given out from its beginning on. It goes back when all that was given is gone."""

    def __init__(self, nbytes: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
        whole = torch.frombuffer(mmap.mmap(-1, nbytes + _LARGE, flags=flags), dtype=torch.uint8)
        start = -whole.data_ptr() % _LARGE
        self.left = whole[start : start + nbytes]
        advise_huge_pages(self.left.data_ptr(), nbytes)

    def take(self, nbytes: int) -> Tensor | None:
        """The next bytes, on a line of their own; None where there are not so many."""
        padded = -(-nbytes // _LINE) * _LINE
        if padded > len(self.left):
            return None
        taken, self.left = self.left[:nbytes], self.left[padded:]
        return taken


_region: ContextVar[_Region | None] = ContextVar("region", default=None)


@contextmanager
def large_pages(nbytes: int) -> Iterator[None]:
    """Within it `room` gives parts of one region of so many bytes, of which memory holds what is written to alone.

    A wish: where the system has no large pages, or no such region, memory is what it is otherwise.
    """
    region = None
    if sys.platform == "linux":
        with suppress(OSError, ValueError):
            region = _Region(nbytes)
    before = _region.set(region)
    try:
        yield
    finally:
        _region.reset(before)


def room(nbytes: int) -> Tensor:
    """uint8 [nbytes], anything in it: of the region of `large_pages` while there is room."""
    region = _region.get()
    taken = region.take(nbytes) if region else None
    return torch.empty(nbytes, dtype=torch.uint8) if taken is None else taken
