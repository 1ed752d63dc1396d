"""The host tier of the paged cache: blocks of all layers in host memory, and the copies between the tiers."""

import time
from collections.abc import Iterable

import torch

from plimsoll.api.errors import PlimsollError
from plimsoll.runtime.engine.core.host_blocks import Copy
from plimsoll.runtime.engine.worker.kv_cache import KVCache
from plimsoll.runtime.machine.heap import advise_huge_pages

TIMED = 5
"""Blocks that are copied each way to find out how long one takes."""


class HostCache:
    """As many bytes a block as the first tier has, at its precision: [num_blocks, layers, 2 or 1, kv_heads, ...].

    One allocation, every page of it touched. Beside a cache on a GPU its pages are locked, so that the card copies them
    while the processor does other work; copies and steps are on one stream, and so in order.

    Raises PlimsollError where a driver does not lock the pages.
    """

    def __init__(self, cache: KVCache, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._first = cache.pool.transpose(1, 2).transpose(0, 1)
        self.pool = torch.empty((num_blocks, *self._first.shape[1:]), dtype=cache.pool.dtype)
        advise_huge_pages(self.pool.data_ptr(), self.pool.nbytes)
        self.pool.zero_()
        self._on_card = cache.pool.device.type == "cuda"
        if self._on_card:
            # torch's own pinned allocations are rounded up to a power of two.
            status = torch.cuda.cudart().cudaHostRegister(self.pool.data_ptr(), self.pool.nbytes, 0)
            if int(status):
                raise PlimsollError(
                    f"the driver does not lock {self.pool.nbytes} bytes of host memory (CUDA error {int(status)})",
                    field="spec.kvCache.hostMemory", fix="Give less, or raise the limit of locked memory (ulimit -l)",
                )  # fmt: skip

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tier."""
        return self.pool.nbytes

    def copy(self, copies: Iterable[Copy]) -> None:
        """Makes `copies` one after the other."""
        for one in copies:
            here, there = self._first[one.block], self.pool[one.slot]
            if one.out:
                there.copy_(here, non_blocking=self._on_card)
            else:
                here.copy_(there, non_blocking=self._on_card)

    def seconds_a_block(self) -> float:
        """How long a block takes one way, measured. Changes no block: what is copied is what is there already."""
        count = min(TIMED, self.num_blocks, len(self._first))
        out, back = ([Copy(at, at, way) for at in range(count)] for way in (True, False))
        self.copy([*out, *back])
        self._wait()
        started = time.perf_counter()
        self.copy([*out, *back])
        self._wait()
        return (time.perf_counter() - started) / (2 * count)

    def _wait(self) -> None:
        if self._on_card:
            torch.cuda.synchronize(self._first.device)
