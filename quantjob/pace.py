"""How fast a phase goes, from what was expected of it and what was measured. Pure: the caller brings the clock."""

from dataclasses import dataclass, field

#: Share of a phase after which its measured pace counts as much as the one that was expected.
TRUST = 0.02


@dataclass
class Pace:
    """One phase that began at `start` of itself (a share, 0 to 1) at `began` of the clock, in seconds.

    Attributes:
        expected: seconds of the whole phase; None where it is unknown.
    """

    start: float
    began: float
    expected: float | None
    _reached: float = field(init=False)
    _at: float = field(init=False)
    _upto: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._reached, self._at = self.start, self.began

    def reach(self, share: float, clock: float, upto: float | None = None) -> None:
        """`share` is done; the step that begins ends at `upto`."""
        if share > self._reached or upto != self._upto:
            self._reached, self._at, self._upto = max(share, self._reached), clock, upto

    @property
    def measured(self) -> bool:
        """Whether anything was done since it began."""
        return self._reached > self.start

    @property
    def whole(self) -> float:
        """Seconds that the whole phase takes at this pace: the expectation, and the more of it is done, the measured
        pace; 0 where nothing is known."""
        done, took = self._reached - self.start, self._at - self.began
        if self.expected is None:
            return took / done if done > 0 else 0.0
        return (TRUST * self.expected + took) / (TRUST + done)

    def share(self, clock: float) -> float:
        """What is done by now: what was reached, and of the step under way what its time says, never all of it."""
        if self._upto is None or self._upto <= self._reached or not self.whole:
            return self._reached
        step = self._upto - self._reached
        # Nine tenths of the step after the time it should take, and never all of it: a slow step still moves.
        spent = (clock - self._at) / (self.whole * step)
        return self._reached + step * (0.9 * spent if spent < 1 else 1 - 0.1 / spent)

    def left(self, clock: float) -> float | None:
        """Seconds until the phase is over; None where nothing is known."""
        return self.whole * (1 - self.share(clock)) if self.whole else None
