"""What the ranks of a tensor-parallel group do together, as the loader and the decoder see it."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from plimsoll.runtime.kernels.table import Adder


class Group(Protocol):
    """One rank's end of a group. Every rank makes the same calls in the same order, each with tensors of one shape
    (but for `gather`'s own width) and dtype."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def adder(self) -> Adder | None:
        """What does `sum` where kernels run several layers in one call; None: they then run one by one."""

    def sum(self, tensor: Tensor) -> Tensor:
        """(floats [T, hidden]) -> the sum over ranks, in place: the same bits on every rank."""

    def largest(self, tensor: Tensor) -> Tensor:
        """(float32 [N] on the CPU) -> the largest over ranks, element by element, in place. NaN is above all. Only
        while weights are loaded."""

    def gather(self, tensor: Tensor, widths: Sequence[int]) -> Tensor | None:
        """([L, widths[rank]]) -> [L, sum of widths] on rank 0, None on the others."""


class RankGroup(Group, Protocol):
    """The same with what a runner needs: announcements of rank 0."""

    def send(self, message: bytes) -> None:
        """From rank 0 to all others, each of which calls `receive`."""

    def receive(self) -> bytes:
        """The next message of rank 0, however long it takes until there is one."""
