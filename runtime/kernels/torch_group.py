"""Collectives of ranks on several machines, through a process group of torch.distributed.

A sum is gathered and then added in the order of ranks: the same bits on every rank, regardless of the number of rows.
Gloo's own all-reduce adds in an order that depends on an element's place, and so on the batch.
"""

import ctypes
import logging
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from plimsoll.api.collectives import PIECE_BYTES
from plimsoll.runtime.kernels.group_error import GroupError
from plimsoll.runtime.kernels.native_group import COLLECTIVE_SECONDS

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
"""Between two looks at whether the group has ended, while a collective waits."""

_ADD = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long)
_FAILED = 1


class TorchGroup:
    """One rank of a process group, as `models.group.Group` says. Tensors lie on the backend's device.

    Calls raise GroupError where another rank is gone or late, or the group has ended.

    Args:
        work: the process group of any backend, such as `ProcessGroupGloo`.
        ended: why the group is not whole any more, None while it is. Called while a collective waits.
        on_cpu: whether kernels that run all layers in one call may call `sum`, too.
    """

    def __init__(
        self, work: dist.ProcessGroup, rank: int, size: int, ended: Callable[[], str | None], *, on_cpu: bool = True
    ) -> None:
        self.rank, self.size = rank, size
        self._work, self._ended = work, ended
        # C calls back through it: it must live as long as this object does.
        self._add = _ADD(self._add_in_place)
        self._on_cpu = on_cpu

    def sum(self, tensor: Tensor) -> Tensor:
        """Floats of any shape: become their sum over ranks, to the same bits on each, in place."""
        return self._combine(tensor, lambda total, part: total.add_(part))

    def largest(self, tensor: Tensor) -> Tensor:
        """The same with the largest of each element; NaN is above all."""
        return self._combine(tensor, lambda total, part: torch.maximum(total, part, out=total))

    def gather(self, tensor: Tensor, widths: Sequence[int]) -> Tensor | None:
        """[L, widths[rank]] of each rank -> [L, sum of widths] on rank 0, None elsewhere."""
        if tensor.shape[1] != widths[self.rank]:
            raise ValueError(f"rank {self.rank} gives {tuple(tensor.shape)}, and has {widths[self.rank]} columns")
        out = tensor.new_empty(len(tensor), sum(widths)) if self.rank == 0 else None
        width = max(widths)
        rows = max(1, PIECE_BYTES // (width * tensor.element_size()))
        for start in range(0, len(tensor), rows):
            piece = tensor[start : start + rows]
            # Backends gather equal shapes.
            even = piece.new_zeros(len(piece), width)
            even[:, : piece.shape[1]] = piece
            parts = [torch.empty_like(even) for _ in widths] if out is not None else []
            self._wait(partial(self._work.gather, [parts] if parts else [], [even], _to_rank_0()))
            if out is not None:
                found = [part[:, :wide] for part, wide in zip(parts, widths, strict=True)]
                torch.cat(found, 1, out=out[start : start + rows])
        return out

    @property
    def adder(self) -> tuple[int, int] | None:
        """Addresses of a C function that does `sum` (`int sum(void *, float *, long)`) and of its first argument."""
        if not self._on_cpu:
            return None
        address = ctypes.cast(self._add, ctypes.c_void_p).value
        assert address is not None
        return address, 0

    def _add_in_place(self, _: int | None, address: int, count: int) -> int:
        try:
            self.sum(torch.frombuffer((ctypes.c_float * count).from_address(address), dtype=torch.float32))
        except Exception as error:
            # C hears of it by number, and makes a GroupError of that.
            log.error("rank %d cannot add: %s", self.rank, error)
            return _FAILED
        return 0

    def _combine(self, tensor: Tensor, into: Callable[[Tensor, Tensor], object]) -> Tensor:
        """In the order of ranks, a piece after the other, so that what is gathered takes little memory."""
        flat = tensor.view(-1)
        for piece in flat.split(PIECE_BYTES // tensor.element_size()) if len(flat) else ():
            parts = piece.new_empty(self.size, len(piece))
            self._wait(partial(self._work._allgather_base, parts.view(-1), piece))
            total = parts[0]
            for part in parts[1:]:
                into(total, part)
            piece.copy_(total)
        return tensor

    def _wait(self, begin: Callable[[], dist.Work]) -> None:
        deadline = time.monotonic() + COLLECTIVE_SECONDS
        if (why := self._ended()) is not None:
            raise GroupError(why)
        try:
            work = begin()
        except RuntimeError as error:
            raise GroupError(self._ended() or f"rank {self.rank} has lost another rank: {_first(error)}") from None
        over = False
        while True:
            try:
                work.wait(timedelta(seconds=LOOK_SECONDS))
                return
            except RuntimeError as error:
                why = self._ended()
                if why is None and over:
                    why = f"rank {self.rank} has lost another rank: {_first(error)}"
                # A wait that was too short raises, too, and the work may have ended well since: the next wait says.
                over = work.is_completed()
                if why is None and time.monotonic() > deadline:
                    why = f"rank {self.rank} waited {COLLECTIVE_SECONDS:g} s for another rank"
                if why is not None:
                    raise GroupError(why) from None


def _to_rank_0() -> dist.GatherOptions:
    options = dist.GatherOptions()
    options.rootRank = 0
    return options


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def gloo(store: dist.Store, rank: int, size: int, address: str) -> dist.ProcessGroup:
    """A process group of CPUs that listens on `address` alone. `store` is where ranks leave their addresses.

    Raises RuntimeError, and what `store` raises.
    """
    # Versions of torch differ in what their stubs say of it.
    kind: Any = dist.ProcessGroupGloo
    options = kind._Options()
    options._devices = [kind.create_device(hostname=address)]
    # Longer than `COLLECTIVE_SECONDS`, so that the words are ours.
    options._timeout = timedelta(seconds=COLLECTIVE_SECONDS + 30)
    options._threads = 1
    made: dist.ProcessGroup = kind(store, rank, size, options)
    return made
