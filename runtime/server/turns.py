"""Work that any client can ask for again and again, spread over time.

An event loop runs all that is ready before it looks at its sockets again. Two hundred requests that come at once, or
sixty bodies of megabytes, would hold up everything else for as long as they take together.
"""

import asyncio
import collections
import time
from collections.abc import Callable

#: Seconds between two turns, at least.
PAUSE = 0.001


class Turns:
    """Runs so many pieces of work at once, in order of arrival, and then pauses for as long as they took.

    So half of the loop's time is left to everything else, and of the processor's to the engine.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = self._left = at_once
        self._waiting = collections.deque[Callable[[], None]]()

    def take(self, work: Callable[[], None]) -> None:
        """Runs `work` now where a turn is left, else when it is this one's turn."""
        if not self._left:
            self._waiting.append(work)
            return
        if self._left == self._at_once:
            # Called after the first step of every task that this turn begins.
            asyncio.get_running_loop().call_soon(self._pause, time.monotonic())
        self._left -= 1
        work()

    def _pause(self, began: float) -> None:
        asyncio.get_running_loop().call_later(max(PAUSE, time.monotonic() - began), self._next)

    def _next(self) -> None:
        self._left = self._at_once
        for _ in range(min(self._at_once, len(self._waiting))):
            self.take(self._waiting.popleft())
