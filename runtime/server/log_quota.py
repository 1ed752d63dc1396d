"""How many lines a second the log takes: a client that floods it must not fill a disk or bury what others need."""

import logging
import threading
import time
from collections.abc import Callable

import structlog

#: Lines a second of each level, and how many may come at once after a quiet while.
RATE, BURST = 100.0, 1000.0
#: Seconds until the lines that were dropped are counted in a line of their own.
REPORT_SECONDS = 1.0
REPORTER = "plimsoll.log"


class LineQuota(logging.Filter):
    """Drops lines beyond the rate, each level for itself: a flood of requests hides no error.

    A warning follows that says how many were dropped of each level.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock, self._lock = clock, threading.Lock()
        #: By level: lines that may come now, and when that was so.
        self._left: dict[str, tuple[float, float]] = {}
        self._dropped: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == REPORTER:
            return True
        with self._lock:
            now = self._clock()
            left, since = self._left.get(record.levelname, (BURST, now))
            left = min(BURST, left + (now - since) * RATE)
            passes = left >= 1
            self._left[record.levelname] = (left - passes, now)
            if not passes:
                if not self._dropped:
                    timer = threading.Timer(REPORT_SECONDS, self.report)
                    timer.daemon = True
                    timer.start()
                self._dropped[record.levelname] = self._dropped.get(record.levelname, 0) + 1
            return passes

    def report(self) -> None:
        """Logs how many lines were dropped since the last report."""
        with self._lock:
            dropped, self._dropped = self._dropped, {}
        if dropped:
            lines = {level.lower(): count for level, count in dropped.items()}
            structlog.get_logger(REPORTER).warning("lines dropped: more than the log takes", lines=lines)
