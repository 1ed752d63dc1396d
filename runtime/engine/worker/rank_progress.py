"""How far the ranks of a group have loaded, as one report: the bytes of all of them, and of each."""

import threading
from collections.abc import Callable, Sequence
from types import TracebackType

import msgspec

from plimsoll.runtime.messages import LoadProgress, RankLoad

LOOK_SECONDS = 0.1
"""Between two looks at the other ranks."""

WEIGHTS = "weights"


class RankProgress:
    """Reports rank 0's progress together with that of the others. Use it as a context while they load.

    Args:
        report: takes each report, from one thread at a time.
        others: how far ranks 1 and up have loaded their weights; None for a rank that has said nothing yet.
    """

    def __init__(
        self, report: Callable[[LoadProgress], None], others: Callable[[], Sequence[LoadProgress | None]]
    ) -> None:
        self._report, self._others = report, others
        self._own: LoadProgress | None = None
        self._kept: dict[int, LoadProgress | None] = {}
        self._last: LoadProgress | None = None
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._looker = threading.Thread(target=self._look, name="rank-progress", daemon=True)

    def __call__(self, progress: LoadProgress) -> None:
        """Rank 0's own progress."""
        with self._lock:
            if progress.phase == WEIGHTS:
                self._own = progress
                self._send()
            else:
                self._report(progress)

    def __enter__(self) -> "RankProgress":
        self._looker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._done.set()
        self._looker.join()
        with self._lock:
            self._send()

    def _look(self) -> None:
        while not self._done.wait(LOOK_SECONDS):
            with self._lock:
                self._send()

    def _send(self) -> None:
        own = self._own
        if own is None:
            return
        loads = [RankLoad(0, own.done_bytes, own.total_bytes, own.seconds)]
        for rank, latest in enumerate(self._others(), 1):
            seen = self._kept[rank] = latest or self._kept.get(rank)
            # A rank that has said nothing yet is likely to hold as much as rank 0.
            load = (0, own.total_bytes, 0.0) if seen is None else (seen.done_bytes, seen.total_bytes, seen.seconds)
            loads.append(RankLoad(rank, *load))
        found = LoadProgress(
            phase=WEIGHTS, done_bytes=sum(one.done_bytes for one in loads),
            total_bytes=sum(one.total_bytes for one in loads), seconds=max(one.seconds for one in loads), ranks=loads,
        )  # fmt: skip
        if self._last is None or msgspec.structs.replace(found, seconds=self._last.seconds) != self._last:
            self._last = found
            self._report(found)
