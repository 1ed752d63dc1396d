"""The weights of one decoder layer beside the spec that says what is done with them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from plimsoll.api.model import LayerSpec, NormSpec

Weight = Any
"""A weight in the layout of the table that packed it: opaque to models, always with `.nbytes: int`."""


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm's vectors; `weight` with the spec's offset added."""

    spec: NormSpec
    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Weights of one layer. Norms and biases are plain tensors in the activations' dtype (norms with an offset in
    float32). What `spec` says the layer has not is None."""

    spec: LayerSpec
    qkv: Weight
    """Rows: all query heads, then keys, then values."""
    qkv_bias: Tensor | None
    output: Weight
    output_bias: Tensor | None
    gate_up: Weight
    """Rows: gate, then up; up alone where the MLP has no gate."""
    gate_up_bias: Tensor | None
    down: Weight
    down_bias: Tensor | None
    attention_norm: Norm | None = None
    mlp_norm: Norm | None = None
    attention_post_norm: Norm | None = None
    mlp_post_norm: Norm | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None

    def parts(self) -> Iterator[Weight]:
        """Everything that takes memory."""
        for name in self.__slots__:
            part = getattr(self, name)
            if isinstance(part, Norm):
                yield from (vector for vector in (part.weight, part.bias) if vector is not None)
            elif part is not None and not isinstance(part, LayerSpec):
                yield part
