"""Where a job is, for a file, a status page, a terminal and the last words of a container."""

import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from plimsoll.api.errors import CheckpointError
from plimsoll.api.job_progress import JobPhase, JobProgress
from plimsoll.api.printable import printable
from plimsoll.quantjob.pace import Pace

PROGRESS_NAME = "progress.json"
#: Phases in which work is done, in their order.
WORKING: tuple[JobPhase, ...] = ("Preparing", "Sampling", "Quantizing", "Evaluating")
#: Per cent of the whole that `Preparing` is; the others share the rest by the seconds that they are expected to take.
PREPARING = 1.0
#: Seconds between two looks while a long step runs, and between two that are written while many short ones do.
BEAT = 1.0
OFTEN = 0.5


class Tracker:
    """The job's progress. One thread moves it; any thread may read `now`.

    Between two moves, `beating` brings it forward at the measured pace, but never past the next step.

    Attributes:
        now: the last look at the job.
        others: bytes that other processes of the job were resident with at most, together.
    """

    def __init__(
        self, listen: Callable[[JobProgress], None] = lambda now: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Args: listen: called with each new look, by the thread that moved it or by that of `beating`."""
        self._listen = listen
        self._clock = clock
        self._lock = threading.RLock()
        self._file: Path | None = None
        self._began = clock()
        self._before = 0.0
        self._published = -OFTEN
        self._expected: dict[JobPhase, float] = {}
        #: (a share of the phase, the percentage of the whole at it, and that at the end of the phase)
        self._scale = (0.0, 0.0, PREPARING)
        self._pace = Pace(0.0, self._began, None)
        self._slower = 1.0
        self.now = JobProgress(phase="Preparing")
        self.others: Callable[[], int] = lambda: 0

    def keep_in(self, folder: Path) -> None:
        """From here on every look is in a file of `folder` too; seconds go on from those it holds."""
        with self._lock:
            self._file = folder / PROGRESS_NAME
            try:
                self._before = JobProgress.decode(self._file.read_bytes()).seconds
            except (OSError, CheckpointError):
                self._before = 0.0

    def expect(self, seconds: Mapping[JobPhase, float]) -> None:
        """About how many seconds phases take as a whole; it may be said again when more is known."""
        with self._lock:
            self._expected |= seconds
            phase = self.now.phase
            if phase in seconds and phase in WORKING:
                self._pace.expected = seconds[phase]
                self._lay_out(phase, self._pace.share(self._clock()), entering=False)

    def move(self, phase: JobPhase, share: float, *, upto: float | None = None, **values: Any) -> None:
        """`share` of `phase` is done (0 to 1).

        Args:
            upto: the share that will be done after the step which begins now; None where that is not known.
            values: other fields of `JobProgress` that are known now.
        """
        with self._lock:
            clock, new = self._clock(), phase != self.now.phase
            share = min(1.0, max(0.0, share))
            if new:
                self._enter(phase, share, clock)
            self._pace.reach(share, clock, upto)
            urgent = new or bool(values.keys() - {"message"})
            self._update(phase, clock, values)
            if urgent or clock - self._published >= OFTEN:
                self._publish(clock)

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Meanwhile a thread brings the time, the bar and the time left forward once a second."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(BEAT):
                self.beat()

        thread = threading.Thread(target=beat, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def beat(self) -> None:
        """A look at the job as it is by now."""
        with self._lock:
            clock = self._clock()
            if self.now.phase in WORKING and clock - self._published >= OFTEN:
                self._update(self.now.phase, clock, {})
                self._publish(clock)

    def last_words(self) -> None:
        """Into the file that Kubernetes reads when the container ends, where one is named."""
        path = os.environ.get("PLIMSOLL_TERMINATION_LOG")
        if not path:
            return
        try:
            Path(path).write_bytes(self.now.encode())
        except OSError as error:
            print(printable(f"warning: {path} cannot be written: {error.strerror}"), file=sys.stderr)

    def _enter(self, phase: JobPhase, share: float, clock: float) -> None:
        if self.now.phase == "Quantizing" and self._pace.measured and self._pace.expected:
            # Both forecasts come from the same measurements, so what was wrong with one is wrong with the other.
            self._slower = min(4.0, max(0.25, self._slower * self._pace.whole / self._pace.expected))
        if phase in WORKING:
            expected = self._expected.get(phase)
            self._pace = Pace(share, clock, None if expected is None else expected * self._slower)
            self._lay_out(phase, share, entering=True)

    def _lay_out(self, phase: JobPhase, share: float, *, entering: bool) -> None:
        """Which percentage the whole is at now, and at the end of `phase`, by the seconds that phases take."""
        place = WORKING.index(phase)
        if not place:
            return
        seconds = [max(1e-3, self._expected.get(one, 0.0)) for one in WORKING[1:]]
        gone, mine, later = sum(seconds[: place - 1]), seconds[place - 1], sum(seconds[place:])
        at = self.now.percent
        if entering:
            # A run that goes on begins in the middle.
            at = max(at, PREPARING + (100 - PREPARING) * (gone + share * mine) / (gone + mine + later))
        rest = mine * (1 - share)
        self._scale = (share, at, at + (100 - at) * rest / max(1e-9, rest + later))

    def _update(self, phase: JobPhase, clock: float, values: Mapping[str, Any]) -> None:
        percent, left = self.now.percent, None
        if phase == "Complete":
            percent, left = 100.0, 0.0
        elif phase in WORKING:
            start, at, end = self._scale
            done = (self._pace.share(clock) - start) / max(1e-9, 1 - start)
            percent = max(percent, min(99.9, at + (end - at) * done))
            left = self._left(phase, clock)
        kept = self.now.model_dump(exclude_none=True, exclude={"reason", "message", "eta_seconds"})
        if phase == self.now.phase and self.now.message is not None:
            kept["message"] = self.now.message
        self.now = JobProgress.model_validate({
            **kept, "phase": phase, "percent": percent, "seconds": self._before + clock - self._began,
            "peak_memory": peak_memory() + self.others(), "eta_seconds": left, **values,
        })  # fmt: skip

    def _left(self, phase: JobPhase, clock: float) -> float | None:
        """Seconds; None where nothing is known of this phase yet."""
        here = self._pace.left(clock)
        if here is None or (phase == "Preparing" and not self._expected):
            return None
        later = WORKING[WORKING.index(phase) + 1 :]
        return here + sum(self._expected.get(one, 0.0) for one in later) * self._slower

    def _publish(self, clock: float) -> None:
        self._published = clock
        self._write()
        self._listen(self.now)

    def _write(self) -> None:
        if self._file is None:
            return
        fresh = self._file.with_suffix(".new")
        try:
            fresh.write_bytes(self.now.encode())
            os.replace(fresh, self._file)
        except OSError:
            # A full disk is reported by the writes that matter; the progress file alone must not stop the job.
            with suppress(OSError):
                fresh.unlink()


def peak_memory() -> int:
    """Bytes: the most that this process was resident with, or one that it waited for."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
