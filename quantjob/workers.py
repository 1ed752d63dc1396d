"""Work spread over threads so that its results depend on none of them.

A unit of work (a sequence, a candidate, a run of rows) is computed by one thread with one thread inside torch, and
results come back in the order of the units. So a sum over units has the same bits on any number of threads.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from plimsoll.runtime.machine.heap import steady_heap
from plimsoll.runtime.machine.threads import cpu_limit

#: Bytes that the heap may keep at its end: glibc's own value. A job has no steps that a larger one would save time in.
_SLACK_BYTES = 128 << 10

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
        # Else glibc raises its bound to the largest block freed, and each thread then keeps a heap of what it once
        # needed: the peak of a layer of 170 MiB was 830 MiB, and 480 with a bound that stays, in the same time. A bound
        # of 1 MiB takes a tenth more time: every page that comes back is zeroed again.
        steady_heap(slack=_SLACK_BYTES)
        self._pool = ThreadPoolExecutor(self.count, "quantize", initializer=torch.set_num_threads, initargs=(1,))

    def map(self, work: Callable[[Unit], Result], units: Iterable[Unit]) -> list[Result]:
        """`work` of each unit, in their order. Raises what the first failing unit raised."""
        return list(self._pool.map(_without_gradients(work), units))

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)


def _without_gradients(work: Callable[[Unit], Result]) -> Callable[[Unit], Result]:
    def run(unit: Unit) -> Result:
        with torch.inference_mode():
            return work(unit)

    return run
