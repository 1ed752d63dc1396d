"""The ranks of a tensor-parallel group as threads of this process, one of which computes at a time."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Found = TypeVar("Found")


class ThreadRank:
    """A `Group` whose ranks meet in the list `slots`."""

    def __init__(
        self, rank: int, size: int, turn: threading.Lock, barrier: threading.Barrier, slots: list[Any]
    ) -> None:
        self.rank, self.size = rank, size
        self._turn, self._barrier, self._slots = turn, barrier, slots

    adder = None

    def _exchanged(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor."""
        self._slots[self.rank] = tensor.clone()
        self._meet()
        found = list(self._slots)
        self._meet()
        return found

    def _meet(self) -> None:
        self._turn.release()
        try:
            self._barrier.wait(30)
        finally:
            self._turn.acquire()

    def sum(self, tensor: Tensor) -> Tensor:
        parts = self._exchanged(tensor)
        assert len({(part.shape, part.dtype) for part in parts}) == 1
        return tensor.copy_(torch.stack(parts).sum(0))

    def largest(self, tensor: Tensor) -> Tensor:
        parts = self._exchanged(tensor)
        assert len({(part.shape, part.dtype) for part in parts}) == 1
        return tensor.copy_(torch.stack(parts).amax(0))

    def gather(self, tensor: Tensor, widths: Sequence[int]) -> Tensor | None:
        parts = self._exchanged(tensor)
        assert [part.shape[1] for part in parts] == list(widths)
        return torch.cat(parts, 1) if self.rank == 0 else None


def on_ranks(size: int, run: Callable[[ThreadRank], Found]) -> list[Found]:
    """What `run` gives on each rank. Raises what the first rank that failed raised."""
    turn, barrier, slots = threading.Lock(), threading.Barrier(size), [None] * size
    found: list[Any] = [None] * size
    failed: list[BaseException] = []

    def work(rank: int) -> None:
        with turn:
            try:
                found[rank] = run(ThreadRank(rank, size, turn, barrier, slots))
            except BaseException as error:
                failed.append(error)
                barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return found
