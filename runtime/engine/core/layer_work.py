"""What a prompt token costs each layer as its context grows: the shape of the cost, not its seconds."""

from collections import Counter
from collections.abc import Sequence


class LayerWork:
    """Work of a row in a layer; 1 where it attends to nothing.

    Args:
        windows: of each layer, the tokens that a position attends to; None where attention is full.
        even: tokens of context to which attention costs as much as the layer's products cost.
    """

    def __init__(self, windows: Sequence[int | None], even: float) -> None:
        self.windows = tuple(windows)
        self.even = even
        self._kinds = Counter(self.windows)

    def of(self, layer: int, context: float) -> float:
        """Work of a row with `context` tokens before it in one layer."""
        return self._with(self.windows[layer], context)

    def total(self, context: float) -> float:
        """Work of a row in all layers."""
        return sum(count * self._with(window, context) for window, count in self._kinds.items())

    def most(self, context: float) -> float:
        """Work of a row in the layer that has most of it."""
        return max(self._with(window, context) for window in self._kinds)

    def _with(self, window: int | None, context: float) -> float:
        return 1 + (context if window is None else min(context, window)) / self.even
