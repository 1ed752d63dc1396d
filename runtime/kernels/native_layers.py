"""All layers of a step in the native table: of few rows in one call (`csrc/layers.c`); of many in one call a layer,
where weights are codes and rows are quantized to 8 bits (`csrc/wide_layers.c`)."""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from plimsoll.api.model import ModelFacts
from plimsoll.runtime.kernels.native_checks import (
    CachePlace,
    answered,
    check_batch,
    check_floats,
    check_integers,
    check_vectors,
)
from plimsoll.runtime.kernels.native_quantized import PackedQuantized
from plimsoll.runtime.kernels.table import AttentionBatch, Cache, KVCaches
from plimsoll.runtime.models.weights import DecoderLayer, Norm

_P, _L, _F = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
OUTSIDE = "a position, slot, block or due row of the step lies outside the model's positions, the cache or the step"
FEW_OF = 2
"""Due rows are few where this many times as many are in the step: the last layer then runs for them alone."""


class _Matrix(ctypes.Structure):
    _fields_ = [("data", _P), ("bias", _P), ("bits", _L), ("scale", _L), ("N", _L), ("K", _L), ("group", _L)]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Matrix) for name in ("qkv", "output", "gate_up", "down")),
        *((name, _P) for name in ("attention_norm", "q_norm", "k_norm", "mlp_norm", "k_cache", "v_cache")),
        ("window", _L),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, _P) for name in ("layers", "final_norm", "cos", "sin")),
        *((name, _L) for name in ("count", "hidden", "H", "G", "D", "S", "cache", "positions", "blocks")),
        ("eps", _F),
        ("scale", _F),
        ("sum", _P),
        ("group", _P),
        ("int8", _L),
    ]


class _Step(ctypes.Structure):
    _fields_ = [
        *((name, _P) for name in ("positions", "slots", "starts", "contexts", "tables")),
        *((name, _L) for name in ("T", "B", "table_width")),
        ("due", _P),
        ("rows_due", _L),
    ]


LAYERS_SIGNATURE: list[Any] = [ctypes.POINTER(_Model), ctypes.POINTER(_Step), _L, _L, _P, _P]
WIDE_LAYERS_SIGNATURE: list[Any] = [ctypes.POINTER(_Model), ctypes.POINTER(_Step), _L, _L, _P, _P, _P]


def has_codes(layers: Sequence[DecoderLayer]) -> bool:
    """Whether any of their matrices is of 4 or 8 bits."""
    matrices = (matrix for layer in layers for matrix in (layer.qkv, layer.output, layer.gate_up, layer.down))
    return any(isinstance(matrix, PackedQuantized) for matrix in matrices)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _matrix(weight: Any, bias: Tensor | None) -> _Matrix:
    if isinstance(weight, PackedQuantized):
        bits, scale, group = weight.bits, weight.scale_kind, weight.group
    else:
        bits, scale, group = weight.data.element_size() * 8, 0, 0
    return _Matrix(weight.address, _address(bias), bits, scale, weight.rows, weight.columns, group)


def _norms(layer: DecoderLayer) -> list[Tensor | None]:
    norms = layer.attention_norm, layer.q_norm, layer.k_norm, layer.mlp_norm
    return [None if norm is None else norm.weight for norm in norms]


def _layer(layer: DecoderLayer) -> _Layer:
    return _Layer(
        _matrix(layer.qkv, layer.qkv_bias), _matrix(layer.output, layer.output_bias),
        _matrix(layer.gate_up, layer.gate_up_bias), _matrix(layer.down, layer.down_bias),
        *(_address(weight) for weight in _norms(layer)), None, None, layer.spec.window or 0,
    )  # fmt: skip


def _check_shapes(
    facts: ModelFacts, layers: Sequence[DecoderLayer], final_norm: Tensor, cos: Tensor, sin: Tensor
) -> None:
    """Raises ValueError for weights that are not as the facts say: C takes every size from them."""
    hidden, dim = facts.hidden_size, facts.head_dim
    mixed, qkv = facts.num_heads * dim, (facts.num_heads + 2 * facts.num_kv_heads) * dim
    check_vectors(hidden, final_norm=final_norm)
    check_floats(cos=cos, sin=sin)
    if cos.shape != sin.shape or cos.shape[1:] != (dim // 2,):
        raise ValueError(f"angles are {tuple(cos.shape)}, for heads of {dim}")
    for layer in layers:
        inner = layer.down.columns
        attention_norm, q_norm, k_norm, mlp_norm = _norms(layer)
        check_vectors(hidden, attention_norm=attention_norm, mlp_norm=mlp_norm)
        check_vectors(dim, q_norm=q_norm, k_norm=k_norm)
        for name, rows, columns in (
            ("qkv", qkv, hidden), ("output", hidden, mixed), ("gate_up", 2 * inner, hidden), ("down", hidden, inner)
        ):  # fmt: skip
            weight = getattr(layer, name)
            check_vectors(rows, **{f"{name}_bias": getattr(layer, f"{name}_bias")})
            if (weight.rows, weight.columns) != (rows, columns):
                raise ValueError(f"{name} is {weight.rows} x {weight.columns}, not {rows} x {columns}")


class NativeLayers:
    """A model's layers by their addresses, of facts that `api.layers_at_once.covers` takes.

    Holds on to every tensor that C reads.
    """

    def __init__(
        self,
        library: Any,
        check: Callable[[Cache], CachePlace],
        most_rows: int,
        facts: ModelFacts,
        layers: Sequence[DecoderLayer],
        final_norm: Norm,
        ropes: Sequence[tuple[Tensor, Tensor]],
        adder: tuple[int, int] | None = None,
        *,
        int8: bool = False,
        wide: bool = False,
    ) -> None:
        self._library, self._check, self._most_rows, self._wide = library, check, most_rows, wide and int8
        self._weights, self._final_norm = tuple(layers), final_norm.weight
        self._cos, self._sin = (table.contiguous() for table in ropes[0])
        _check_shapes(facts, layers, final_norm.weight, self._cos, self._sin)
        self._layers = (_Layer * len(layers))(*map(_layer, layers))
        self._model = _Model(
            ctypes.cast(self._layers, _P), self._final_norm.data_ptr(), self._cos.data_ptr(), self._sin.data_ptr(),
            len(layers), facts.hidden_size, facts.num_heads, facts.num_kv_heads, facts.head_dim, 0, 0,
            len(self._cos), 0,
            facts.final_norm.eps, facts.layers[0].scale, *(adder or (None, None)), int(int8),
        )  # fmt: skip
        self._caches: KVCaches = ()
        self._memory = torch.empty(0)

    def __call__(
        self, residual: Tensor, positions: Tensor, caches: KVCaches, batch: AttentionBatch,
        count: Callable[[int], None], first: int, stop: int, due: Tensor | None = None,
    ) -> Tensor | None:  # fmt: skip
        """As `RunLayers` says. Raises ValueError for a cache the kernels do not take, IndexError, MemoryError."""
        rows, tables = len(residual), batch.block_tables
        if not 0 <= first < stop <= len(self._layers):
            raise IndexError(f"layers {first} to {stop} of {len(self._layers)}")
        if not rows or (rows > self._most_rows and not self._wide):
            return None
        if caches is not self._caches:
            self._attach(caches)
        if rows > self._most_rows and not self._make_room(rows):
            return None
        positions = check_integers(positions, torch.int64, "positions")
        slots = check_integers(batch.slot_mapping, torch.int64, "slots")
        check_batch(batch)
        check_floats(residual=residual)
        if not rows == len(positions) == len(slots) or not residual.is_contiguous():
            raise ValueError(f"{rows} rows have {len(positions)} positions and {len(slots)} slots")
        due = None if due is None else check_integers(due, torch.int64, "due rows")
        few = due if due is not None and rows > self._most_rows and FEW_OF * len(due) <= rows else None
        hidden = residual.new_empty(rows if few is None else len(few), residual.shape[1])
        step = _Step(
            positions.data_ptr(), slots.data_ptr(), batch.query_start.data_ptr(), batch.context_lens.data_ptr(),
            tables.data_ptr(), rows, tables.shape[0], tables.stride(0), _address(few), -1 if few is None else len(few),
        )  # fmt: skip
        given = residual.data_ptr(), hidden.data_ptr()
        if rows <= self._most_rows:
            answered(self._library.run_layers(self._model, step, first, stop, *given), OUTSIDE)
            count(stop - first)
            return hidden if due is None else hidden.index_select(0, due)
        for index in range(first, stop):
            room = self._memory.data_ptr()
            answered(self._library.run_wide_layers(self._model, step, index, index + 1, *given, room), OUTSIDE)
            count(1)
        return hidden if due is None or few is not None else hidden.index_select(0, due)

    def _make_room(self, rows: int) -> bool:
        """Whether `csrc/wide_layers.c` covers the model: then there is memory for `rows` rows, which is kept."""
        floats = self._library.wide_floats(ctypes.byref(self._model), _L(rows))
        if len(self._memory) < floats:
            self._memory = torch.empty(0)
            self._memory = torch.empty(floats)
        return floats > 0

    def _attach(self, caches: KVCaches) -> None:
        first = caches[0].shape
        for layer, cache in zip(self._layers, caches, strict=True):
            place, shape = self._check(cache), (first[0], self._model.G, first[2], self._model.D)
            if first[2] % 16 or cache.shape != shape:
                raise ValueError(f"cache blocks {tuple(cache.shape)}: must be {shape}, block size in sixteens")
            layer.k_cache, layer.v_cache, self._model.cache = place.keys, place.values, place.kind
        self._model.blocks, self._model.S = first[0], first[2]
        self._caches = caches
