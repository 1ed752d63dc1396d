"""What rows of a prompt cost each layer as their context grows: the shape of the cost, not its seconds."""

from collections import Counter
from collections.abc import Sequence

READING = 5.0
"""Rows that cost as much as reading what all rows share, on one thread of an AMD EPYC (Zen 5)."""


class LayerWork:
    """Work of rows of one sequence in a layer: what they multiply, and what is read once for all of them, the layer's
    weights and the keys and values before them. A unit is a row that attends to nothing.

    Args:
        windows: of each layer, the tokens that a position attends to; None where attention is full.
        even: tokens of context to which attention costs as much as the layer's products cost.
        reading: rows that cost as much as what is read once.
    """

    def __init__(self, windows: Sequence[int | None], even: float, reading: float = READING) -> None:
        self.windows = tuple(windows)
        self.even = even
        self.reading = reading
        self._kinds = Counter(self.windows)

    def of(self, layer: int, rows: float, context: float) -> float:
        """Work of rows in one layer, the middle one with `context` tokens before it."""
        return (rows + self.reading) * self.row(layer, context)

    def row(self, layer: int, context: float) -> float:
        """Work that a row more adds to one layer."""
        return 1 + self._attention(self.windows[layer], context)

    def most(self, context: float) -> float:
        """Work that a row more adds to the layer in which it adds most."""
        return 1 + max(self._attention(window, context) for window in self._kinds)

    def joined(self, rows: float, context: float) -> float:
        """Work that rows add to all layers of a step which reads the weights in any case."""
        attention = sum(count * self._attention(window, context) for window, count in self._kinds.items())
        return rows * len(self.windows) + (rows + self.reading) * attention

    def _attention(self, window: int | None, context: float) -> float:
        """Work of a row's attention."""
        return (context if window is None else min(context, window)) / self.even
