"""Work spread over threads so that its results depend on none of them.

A unit of work (a sequence, a candidate, a run of rows) is computed by one thread with one thread inside torch, and
results come back in the order of the units. So a sum over units has the same bits on any number of threads.
"""

import ctypes
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from plimsoll.runtime.machine.threads import cpu_limit

#: Bytes; and malloc.h's number for the option.
_MAPPED = 4 << 20
_M_MMAP_THRESHOLD = -3

Unit = TypeVar("Unit")
Result = TypeVar("Result")


class Workers:
    """A pool of threads, each with one thread inside torch.

    Attributes:
        count: units worked on at once.
    """

    def __init__(self, count: int | None = None) -> None:
        """Turns torch's own threads off in this process: what is computed between units must not depend on them either.

        Takes as many threads as this process may keep busy if `count` is None."""
        self.count = count or cpu_limit()
        torch.set_num_threads(1)
        _give_memory_back_at_once()
        self._pool = ThreadPoolExecutor(self.count, "quantize", initializer=torch.set_num_threads, initargs=(1,))

    def map(self, work: Callable[[Unit], Result], units: Iterable[Unit]) -> list[Result]:
        """`work` of each unit, in their order. Raises what the first failing unit raised."""
        return list(self._pool.map(_without_gradients(work), units))

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)


def _give_memory_back_at_once() -> None:
    """Whatever is larger than `_MAPPED` goes back to the system when it is freed.

    glibc raises that bound to the largest block freed, and each thread then keeps a heap of what it once needed: the
    peak of a layer of 170 MiB was 830 MiB, and 480 with a bound that stays, in the same time. (A bound of 1 MiB takes
    a tenth more time: every page that comes back is zeroed again.)
    """
    _libc("mallopt", _M_MMAP_THRESHOLD, _MAPPED)


def give_memory_back() -> None:
    """What the heaps of all threads hold for nothing goes back to the system; of use where other work begins."""
    _libc("malloc_trim", 0)


def _libc(name: str, *values: int) -> None:
    """glibc's function of that name; nothing where another library takes its place."""
    if sys.platform == "linux":
        function = getattr(ctypes.CDLL(None), name, None)
        if function is not None:
            function(*values)


def _without_gradients(work: Callable[[Unit], Result]) -> Callable[[Unit], Result]:
    def run(unit: Unit) -> Result:
        with torch.inference_mode():
            return work(unit)

    return run
