"""Where a job is, told to whoever looks: a file, a page, a terminal, the last words of a container."""

import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from plimsoll.api.errors import CheckpointError
from plimsoll.api.job_progress import JobPhase, JobProgress

PROGRESS_NAME = "progress.json"
#: Shares of a job's time: reading and sampling, the layers, evaluation. They only move the bar; seconds are measured.
SHARES: dict[str, tuple[float, float]] = {
    "Preparing": (0, 1), "Sampling": (1, 15), "Quantizing": (15, 80), "Evaluating": (80, 100), "Complete": (100, 100),
}  # fmt: skip


class Tracker:
    """The job's progress, which any thread may read and one moves on.

    Attributes:
        now: the last look at the job.
    """

    def __init__(self, listen: Callable[[JobProgress], None] = lambda now: None) -> None:
        """Args: listen: told each new look, by the thread that moved it on."""
        self._listen = listen
        self._lock = threading.Lock()
        self._file: Path | None = None
        self._began = time.monotonic()
        self._before = 0.0
        self._phase_began = (self._began, 0.0)
        self.now = JobProgress(phase="Preparing")

    def keep_in(self, folder: Path) -> None:
        """From here on every look is in a file of `folder` too; seconds go on from those it holds."""
        self._file = folder / PROGRESS_NAME
        try:
            self._before = JobProgress.decode(self._file.read_bytes()).seconds
        except (OSError, CheckpointError):
            self._before = 0.0

    def move(self, phase: JobPhase, share: float, **values: Any) -> None:
        """`share` of `phase` is done (0 to 1); `values` are other fields of `JobProgress` that are known now."""
        clock = time.monotonic()
        first, last = SHARES.get(phase, (0.0, 100.0))
        percent = self.now.percent if phase == "Failed" else first + (last - first) * min(1.0, max(0.0, share))
        if phase != self.now.phase:
            self._phase_began = (clock, share)
        began, at = self._phase_began
        pace = (clock - began) / (share - at) if share > at else None
        left = None if pace is None else pace * (1 - share) + pace * (100 - last) / max(1e-9, last - first)
        kept = self.now.model_dump(exclude_none=True, exclude={"reason", "message"})
        found = JobProgress.model_validate(
            {
                **kept, "phase": phase, "percent": percent, "seconds": self._before + clock - self._began,
                "peak_memory": peak_memory(), "eta_seconds": 0.0 if phase == "Complete" else left, **values,
            }
        )  # fmt: skip
        with self._lock:
            self.now = found
        self._write()
        self._listen(found)

    def last_words(self) -> None:
        """Into the file that Kubernetes reads when the container ends, where one is named."""
        path = os.environ.get("PLIMSOLL_TERMINATION_LOG")
        if not path:
            return
        try:
            Path(path).write_bytes(self.now.encode())
        except OSError as error:
            print(f"warning: {path} cannot be written: {error.strerror}", file=sys.stderr)

    def _write(self) -> None:
        if self._file is None:
            return
        fresh = self._file.with_suffix(".new")
        try:
            fresh.write_bytes(self.now.encode())
            os.replace(fresh, self._file)
        except OSError:
            # What the job is for has its own words for a disk that is full; a bar need not stop it.
            with suppress(OSError):
                fresh.unlink()


def peak_memory() -> int:
    """Bytes: the most that this process was resident with, or one that it waited for."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
