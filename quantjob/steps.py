"""Work in steps of known relative lengths, as shares of the whole."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: (share that is done, share that is done after the step which begins)
OnShare = Callable[[float, float], None]


@dataclass(frozen=True)
class ComparedSteps:
    """An evaluation in any unit of work: `layer` is one of one model over all windows, `window` the heads of all models
    over one window."""

    layer: float
    window: float


def silent(share: float, upto: float) -> None:
    """An `OnShare` for work without a progress display."""


class Steps:
    """`begin` a step, or a part of one; the listener gets shares of the whole."""

    def __init__(self, lengths: Sequence[float], listen: OnShare) -> None:
        """Args: lengths: of the steps, in any unit; steps of no length count as equal where all are."""
        whole = sum(lengths)
        self._ends = [0.0]
        for length in lengths:
            self._ends.append(self._ends[-1] + (length / whole if whole > 0 else 1 / len(lengths)))
        self._listen = listen

    def begin(self, step: int, start: float = 0.0, stop: float = 1.0) -> None:
        """The part of `step` from `start` to `stop` (0 to 1) begins; all before it is done."""
        first, length = self._ends[step], self._ends[step + 1] - self._ends[step]
        self._listen(min(1.0, first + start * length), min(1.0, first + stop * length))
