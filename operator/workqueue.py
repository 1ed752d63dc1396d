"""Which deployments to look at, and when: each key once, never twice at a time, failures ever more rarely."""

import heapq
import random
import threading
import time
from collections import deque
from collections.abc import Callable

from plimsoll.operator.entries import Key
from plimsoll.operator.metrics import Metrics

#: So long after a new key, more of them are expected.
RUSH_SECONDS = 2.0
SETTLE_SECONDS = 0.25
FIRST_RETRY_SECONDS = 0.25
LAST_RETRY_SECONDS = 120.0


class WorkQueue:
    """Keys for worker threads. A key that is added while it is worked on comes again afterwards.

    Args:
        others: how many keys that are not new are worked on at once while new ones come: what they write would only
            make the API server slower for those that have nothing yet.
        settle: seconds that a key rests between two looks while new ones come: of a pod that starts four or five events
            follow on one another, and one look sees all of them.
    """

    def __init__(
        self, metrics: Metrics, clock: Callable[[], float] = time.monotonic, others: int = 8, settle: float = 0.0
    ) -> None:
        self._metrics, self._clock, self._others, self._settle = metrics, clock, others, settle
        self._rush_until = float("-inf")
        self._first: set[Key] = set()
        """Keys that are worked on for the first time."""
        self._change = threading.Condition()
        self._new: deque[Key] = deque()
        """Waiting keys that were never reconciled: they go first, since nothing of theirs is there."""
        self._known: dict[Key, float] = {}
        """When each key that is not new was last looked at."""
        self._ready: deque[Key] = deque()
        self._since: dict[Key, float] = {}
        """When each waiting key was added."""
        self._working: dict[Key, float] = {}
        self._again: set[Key] = set()
        self._later: dict[Key, float] = {}
        self._due: list[tuple[float, Key]] = []
        self._failures: dict[Key, int] = {}
        self._open = False
        self.closed = False

    def add(self, key: Key, after: float = 0.0) -> None:
        """Wants `key` looked at, at the latest in `after` seconds."""
        with self._change:
            if after > 0:
                self._add_later(key, self._clock() + after)
            else:
                self._add_now(key)

    def _add_later(self, key: Key, due: float) -> None:
        if due < self._later.get(key, float("inf")):
            self._later[key] = due
            heapq.heappush(self._due, (due, key))
            self._change.notify()

    def _add_now(self, key: Key) -> None:
        now = self._clock()
        rested = self._known.get(key, float("-inf")) + self._settle
        if key in self._working:
            self._again.add(key)
        elif now < rested and now < self._rush_until:
            self._add_later(key, rested)
        elif key not in self._since:
            self._since[key] = now
            if key in self._known:
                self._ready.append(key)
            else:
                self._new.append(key)
                self._rush_until = now + RUSH_SECONDS
            self._metrics.queue_depth.set(len(self._since))
            self._change.notify()

    def get(self, timeout: float) -> Key | None:
        """The next key; None after `timeout` seconds, and for good once the queue is closed."""
        until = self._clock() + timeout
        with self._change:
            while not self.closed:
                now = self._clock()
                self._promote(now)
                if self._open and (self._new or (self._ready and not self._full(now))):
                    return self._take(now)
                wait = until - now
                if wait <= 0:
                    return None
                if self._open and self._due:
                    wait = min(wait, max(0.0, self._due[0][0] - now))
                if self._open and self._ready:
                    wait = min(wait, max(0.0, self._rush_until - now))
                self._change.wait(wait)
            return None

    def _full(self, now: float) -> bool:
        """Whether what is not new has to wait."""
        return now < self._rush_until and len(self._working) - len(self._first) >= self._others

    def rush(self) -> bool:
        """Whether new keys come: what can wait should."""
        with self._change:
            return self._clock() < self._rush_until

    def _promote(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            due, key = heapq.heappop(self._due)
            if self._later.get(key) == due:
                del self._later[key]
                self._add_now(key)

    def _take(self, now: float) -> Key:
        if self._new:
            self._first.add(self._new[0])
        key = (self._new or self._ready).popleft()
        self._known[key] = now
        self._metrics.queue_seconds.observe(max(0.0, now - self._since.pop(key)))
        self._metrics.queue_depth.set(len(self._since))
        self._working[key] = now
        # The reconcile that starts now decides when the next one is due.
        self._later.pop(key, None)
        return key

    def done(self, key: Key, again_in: float | None = None) -> None:
        """`key` was looked at without failure; `again_in` seconds it wants to be looked at again."""
        with self._change:
            self._failures.pop(key, None)
            self._finish(key)
        if again_in is not None:
            self.add(key, again_in)

    def failed(self, key: Key, at_least: float = 0.0) -> float:
        """`key` comes again, later with each failure. Returns in how many seconds."""
        with self._change:
            count = self._failures.get(key, 0)
            self._failures[key] = count + 1
            wait = min(FIRST_RETRY_SECONDS * 2.0 ** min(count, 20), LAST_RETRY_SECONDS) * random.uniform(0.75, 1.25)
            wait = max(wait, at_least)
            # What happened meanwhile is no reason to run into the same wall at once.
            self._again.discard(key)
            if self._later.get(key, float("inf")) <= self._clock():
                del self._later[key]
            self._finish(key)
        self.add(key, wait)
        return wait

    def _finish(self, key: Key) -> None:
        self._working.pop(key, None)
        self._first.discard(key)
        if key in self._known:
            self._known[key] = self._clock()
        if key in self._again:
            self._again.discard(key)
            self._add_now(key)
        elif self._ready:
            # One that had to wait for this one.
            self._change.notify()

    def forget(self, key: Key) -> None:
        """There is no such deployment any more."""
        with self._change:
            self._failures.pop(key, None)
            self._later.pop(key, None)
            self._known.pop(key, None)

    def open(self) -> None:
        """Hand out keys from now on."""
        with self._change:
            self._open = True
            self._change.notify_all()

    def pause(self) -> None:
        """Nothing is handed out until `open`; what is added meanwhile waits."""
        with self._change:
            self._open = False

    def close(self) -> None:
        with self._change:
            self.closed = True
            self._change.notify_all()

    def longest_running(self) -> float:
        """Seconds that the slowest worker has been at its key."""
        with self._change:
            return max((self._clock() - since for since in self._working.values()), default=0.0)
