"""Whether an engine process hangs, judged by its signs of life. Pure: messages and seconds come from the caller."""

from plimsoll.runtime.messages import FromEngine, Heartbeat

LOADING_SILENCE_SECONDS = 120.0
"""A loading engine may be silent for so long: importing torch from a slow disk holds Python's lock."""

LOADING_STILL_SECONDS = 600.0
"""A loading engine may report no progress for so long: one large tensor may take a while."""

STILL = 6
"""A main loop that does not move gets so many times the bound of silence."""

SLOWEST = 10
"""And so many times the longest that the loop ever took between two signs of progress, so that a slow machine's long
steps do not look like a hang."""


class Watch:
    """One engine process, from its start.

    A heartbeat comes from a thread of its own and counts as life; as progress it counts only where a layer, a head or a
    turn of the loop was done since the last one. Every other message is both.

    Args:
        hang_seconds: silence after which an engine that serves hangs.
    """

    def __init__(self, hang_seconds: float) -> None:
        self._hang = hang_seconds
        self._serving = False
        self._silent = self._still = self._slowest = 0.0
        self._progress = 0

    def serves(self) -> None:
        """Notes that the engine has loaded: from now on the bounds of one that serves hold."""
        self._serving = True
        self._slowest = 0.0

    def hear(self, message: FromEngine) -> None:
        """Notes a message."""
        self._silent = 0.0
        if isinstance(message, Heartbeat) and message.progress == self._progress:
            return
        if isinstance(message, Heartbeat):
            self._progress = message.progress
        self._slowest = max(self._slowest, self._still)
        self._still = 0.0

    def wait(self, seconds: float) -> None:
        """Notes that so many seconds have passed, and that what came in them has been heard."""
        self._silent += seconds
        self._still += seconds

    @property
    def suspect(self) -> bool:
        """Whether half of a bound is over: send no request here for now."""
        return self._serving and self._spent >= 0.5

    @property
    def hung(self) -> str:
        """Why the engine counts as hung, empty while it does not."""
        if self._spent < 1:
            return ""
        if self._silent >= self._silence:
            return f"it gave no sign of life for {self._silent:.0f} s"
        return f"nothing moved in it for {self._still:.0f} s"

    @property
    def _silence(self) -> float:
        return self._hang if self._serving else max(self._hang, LOADING_SILENCE_SECONDS)

    @property
    def _spent(self) -> float:
        """The share of its bound that the engine has used up."""
        still = max(STILL * self._hang, SLOWEST * self._slowest) if self._serving else LOADING_STILL_SECONDS
        return max(self._silent / self._silence, self._still / max(still, self._silence))
