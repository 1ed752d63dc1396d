"""A thread that the process cannot do without: whether it lives, and when it last went round."""

import threading
import time
from collections.abc import Callable


class Pulse:
    """A daemon thread whose end or standstill can be seen from outside.

    Args:
        bound: seconds that one round may take; infinite for a thread that waits for work.
    """

    def __init__(
        self, name: str, run: Callable[[], None], bound: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.name, self._bound, self._clock = name, bound, clock
        self._thread = threading.Thread(target=run, name=name, daemon=True)
        self._started = False
        self._beat_at = 0.0

    def start(self) -> None:
        self._started = True
        self.beat()
        self._thread.start()

    def beat(self) -> None:
        """The thread goes round."""
        self._beat_at = self._clock()

    def join(self, seconds: float) -> None:
        """Wait at most `seconds` for the thread to end."""
        if self._thread.is_alive():
            self._thread.join(seconds)

    def wrong(self) -> list[str]:
        """What only a restart mends; empty while the thread lives, or was not started yet."""
        if not self._started:
            return []
        if not self._thread.is_alive():
            return [f"the thread {self.name} has ended"]
        age = self._clock() - self._beat_at
        return [f"the thread {self.name} has been stuck for {age:.0f} s"] if age > self._bound else []
