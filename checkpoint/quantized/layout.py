"""What every format says of one linear layer: its tensors, their shapes, and the way to and from codes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from plimsoll.api.quantization import Quantization
from plimsoll.checkpoint.checkpoint import RawTensor
from plimsoll.checkpoint.quantized.linear import QuantizedLinear

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """One stored tensor of a linear layer, named by what follows the module's name and a point."""

    shape: Shape
    dtypes: tuple[str, ...]
    optional: bool = False


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

    def pack(self, linear: QuantizedLinear, name: str) -> dict[str, RawTensor]:
        """Raises CheckpointError for a shape the format cannot hold; `name` is the module's, for the error."""

    def unpack(
        self, parts: Mapping[str, RawTensor], quantization: Quantization, rows: tuple[int, int], name: str
    ) -> QuantizedLinear:
        """Rows [start, stop) of the weight. Raises CheckpointError for values that make no sense."""
