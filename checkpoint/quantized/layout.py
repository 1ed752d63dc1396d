"""What every format says of one linear layer: its tensors, their shapes, and the way to and from codes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from plimsoll.api.quantization import Quantization
from plimsoll.api.shard import Run
from plimsoll.checkpoint.checkpoint import RawTensor
from plimsoll.checkpoint.quantized.linear import QuantizedLinear

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """One stored tensor of a linear layer, named by what follows the module's name and a point."""

    shape: Shape
    dtypes: tuple[str, ...]
    optional: bool = False


@dataclass(frozen=True)
class Window:
    """Rows and columns, each [start, stop), of a weight of `shape` that are read at once."""

    shape: tuple[int, int]
    rows: Run
    columns: Run

    def groups(self, quantization: Quantization) -> Run:
        """Groups of its columns. Raises ValueError where it cuts one that is less than a row."""
        start, stop = self.columns
        size = quantization.group_size
        if not size or size == self.shape[1]:
            return 0, 1
        if start % size or stop % size:
            raise ValueError(f"columns {start}:{stop} cut a group of {size}")
        return start // size, stop // size


Cut = tuple[Run | None, Run | None]
"""Rows and columns of a stored tensor; None is all."""


def enclosing(run: Run, step: int) -> Run:
    """The words of `step` that enclose `run`."""
    return run[0] // step, -(-run[1] // step)


def inside(run: Run, outer: int) -> slice:
    """Where `run` lies in what begins at `outer`."""
    return slice(run[0] - outer, run[1] - outer)


class Layout(Protocol):
    """One format. `parts` maps a stored tensor's suffix (`qweight`) to it."""

    codes: ClassVar[str]
    """The suffix of the tensor that holds the codes; a module that has it is quantized."""
    suffixes: ClassVar[tuple[str, ...]]
    """Of every tensor that may belong to a quantized linear, besides its bias."""

    def shape(self, codes: Shape, bits: int) -> tuple[int, int]:
        """(N, K) of the weight whose codes are stored with shape `codes` of two dimensions."""

    def parts(self, rows: int, columns: int, quantization: Quantization) -> Mapping[str, Part]:
        """What a linear of [rows, columns] stores."""

    def cuts(self, window: Window, quantization: Quantization) -> Mapping[str, Cut]:
        """What to read of each stored tensor for `window`, in whole words. Raises ValueError for a cut group."""

    def unpack(
        self, parts: Mapping[str, RawTensor], quantization: Quantization, window: Window, rows: Run, name: str
    ) -> QuantizedLinear:
        """Rows [start, stop) of the weight, which lie in `window`, of whose `cuts` the parts are; and its columns.

        Raises CheckpointError for values that make no sense.
        """
