"""The table of kernels: every op the models use, and nothing else.

One `Kernels` value is one way of running a model. `torch_ops.py` is the specification: plain torch, any device.
A faster table must agree with it; `tests/kernels` holds them together. Models call `ops.linear(x, w)` and never
learn which table it is.

Shapes: T tokens of the whole batch laid end to end, H query heads, G key-value heads, D head size, N/K out/in features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plimsoll.api.device import TableFacts
from plimsoll.api.model import Activation, ModelFacts
from plimsoll.runtime.kernels.layer_cache import LayerCache
from plimsoll.runtime.kernels.quantized import QuantizedMatrix
from plimsoll.runtime.kernels.quantized_cache import QuantizedCache
from plimsoll.runtime.models.weights import DecoderLayer, Norm, Weight


@dataclass(frozen=True)
class AttentionBatch:
    """Where each sequence of a step lies. B sequences; sequence b owns rows query_start[b]:query_start[b+1].

    Its last row is position context_lens[b]-1; its keys and values are in block_tables[b], the new ones included
    (`write_kv` runs before `attention`). Rows of one sequence are consecutive positions.
    """

    query_start: Tensor
    """int32 [B+1] on the device."""
    context_lens: Tensor
    """int32 [B] on the device: keys each sequence has after this step."""
    block_tables: Tensor
    """int32 [B, M] on the device, padded with 0."""
    slot_mapping: Tensor
    """int64 [T]: block * block_size + offset where each row's key and value go."""
    query_start_cpu: list[int]
    context_lens_cpu: list[int]


Cache = LayerCache | QuantizedCache
"""One layer's keys and values, in whichever precision."""

KVCaches = Sequence[Cache]
"""One a layer."""


RunLayers = Callable[
    [Tensor, Tensor, KVCaches, AttentionBatch, Callable[[int], None], int, int, Tensor | None], Tensor | None
]
"""(residual [T, hidden], positions int64 [T], caches, batch, count, first, stop, due int64 [L] or None) -> after the
last layer, hidden states of the due rows [L, hidden], or of all [T, hidden], normed by the last norm; after others, of
no use. Layers `first` to `stop` - 1 write keys and values and change residual in place; of rows that are not due
the last layer may leave it as it is. `count` gets the number of layers that were computed, some at a time. None, and
nothing done, for more rows than it covers."""


class DrawFilter(Protocol):
    """What shapes a row's distribution before a token is drawn, in this order: temperature, min-p, top-k, top-p."""

    @property
    def temperature(self) -> float:
        """Above 0."""

    @property
    def min_p(self) -> float:
        """Least share of the largest probability; 0 is off."""

    @property
    def top_k(self) -> int:
        """0 is off."""

    @property
    def top_p(self) -> float:
        """Above 0; 1 is off."""


Draw = Callable[
    [Tensor, Sequence[int], npt.NDArray[np.float32], Sequence[DrawFilter], npt.NDArray[np.float64]],
    npt.NDArray[np.int64],
]
"""(logits float32 [L, V], n of their rows, the largest value of each [n], filters, uniform numbers in [0, 1) [n]) ->
ids [n]. Every largest value is finite, and no value of its row is NaN. An id depends on its row alone."""


Adder = tuple[int, int]
"""Addresses of `int sum(void *group, float *data, long count)` and of its first argument."""


@dataclass(frozen=True)
class Kernels:
    """Callables of one table. What an operation returns is valid until its next result of that width: a step of many
    rows may find its results in memory that is kept for them.

    `dtype` is that of activations; weights and cache may be narrower."""

    name: str
    device: torch.device
    dtype: torch.dtype
    pack: Callable[[Tensor], Weight]
    """(weight [N, K]) -> Weight. Takes the tensor as read; may keep it or copy it into its own layout of equal size
    (rows padded to the table's tile: `packed_bytes` tells)."""
    pack_quantized: Callable[[QuantizedMatrix], Weight]
    """A quantized weight [N, K] -> Weight, for `linear` and `embedding`. Held as it is: with rows padded to the table's
    tile, rows * (K/2 + 3 G) bytes for 4 bits with 16-bit scales (4 G with minimums, 5 G with float32 scales), rows *
    (K + 4 G) for 8; in super-blocks G + K/128 for the scales and as much for minimums. Raises ValueError for codes
    above 15."""
    embedding: Callable[[Tensor, Weight], Tensor]
    """(ids int64 [T], w) -> [T, K] in `dtype`. The same Weight serves a tied head."""
    linear: Callable[[Tensor, Weight, Tensor | None], Tensor]
    """(x [T, K], w, bias [N] or None) -> [T, N]. `w` of either kind of packing."""
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    """(x [..., K], weight [K], eps) -> [..., K]. Statistics in float32."""
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    """(x [T, K], residual [T, K], weight, eps) -> norm(x + residual); residual becomes x + residual in place."""
    layer_norm: Callable[[Tensor, Tensor, Tensor | None, float], Tensor]
    """(x [..., K], weight [K], bias [K] or None, eps) -> [..., K]. Statistics in float32."""
    activate: Callable[[Tensor, Activation, bool], Tensor]
    """(gate_up [T, 2I], activation, True) -> act(gate) * up, [T, I], gate the first half; (up [T, I], activation,
    False) -> act(up)."""
    rope: Callable[[Tensor, Tensor, Tensor, Tensor], None]
    """(q [T, H, D], k [T, G, D], cos [T, D/2], sin [T, D/2]): rotates in place, NeoX halves. q and k may be strided
    views of one qkv row; cos and sin are float32, already scaled and gathered for each row."""
    write_kv: Callable[[Tensor, Tensor, Cache, Tensor], None]
    """(k [T, G, D], v [T, G, D], cache, slot_mapping [T])."""
    attention: Callable[[Tensor, Cache, AttentionBatch, float, int | None, float | None], Tensor]
    """(q [T, H, D], cache, batch, scale, sliding_window or None, soft cap or None) -> [T, H*D]. Causal; with
    a window w, position p sees keys p-w+1 .. p; with a cap c, scores s become c * tanh(s / c)."""
    facts: TableFacts
    """What the budget needs to know of this table."""
    varies: str | None
    """Why the bits of a row may depend on the other rows of its step; None where they never do."""
    layers: (
        Callable[
            [ModelFacts, Sequence[DecoderLayer], Norm, Sequence[tuple[Tensor, Tensor]], Adder | None], RunLayers | None
        ]
        | None
    ) = None
    """(facts, layers, final norm, ropes as (cos, sin), what sums over ranks) -> all of them in one call, to the bit
    what the operations give one by one; None where the table has no such thing, and for specs that it does not
    cover."""
    draw: Draw | None = None
    """None where the sampler's own draws are used, which are the specification."""
