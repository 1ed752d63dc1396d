"""From a checkpoint to a Decoder, in runs of rows: never more than one fused weight beyond what is kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from plimsoll.api.errors import CheckpointError
from plimsoll.api.families.family import Linear
from plimsoll.api.families.registry import find_family
from plimsoll.api.layer_tensors import FUSED, expected_tensors, fused_roles, has_bias, norm_sizes, stored_linears
from plimsoll.api.model import LayerSpec, ModelFacts, NormSpec, RopeFacts
from plimsoll.api.precision import CODE_BITS, Precision, head_group, held_group
from plimsoll.checkpoint.quantized.linear import MIDDLE, QuantizedLinear
from plimsoll.runtime.kernels.quantized import QuantizedMatrix
from plimsoll.runtime.kernels.table import Kernels
from plimsoll.runtime.machine.heap import return_freed_memory
from plimsoll.runtime.models.decoder import Decoder
from plimsoll.runtime.models.rope import rope_table, with_rope
from plimsoll.runtime.models.rounding import round_to_nearest
from plimsoll.runtime.models.weights import DecoderLayer, Norm, Weight

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Dtypes a weight may be stored in, by safetensors name."""

Progress = Callable[[int, int], None]
"""(bytes done, bytes in all), counted in the precision served."""


READ_ELEMENTS = 4 * 1024 * 1024
"""Elements read and converted at once."""
CODE_ELEMENTS = READ_ELEMENTS // 4
"""The same where they are rounded to codes or unpacked, which passes through several arrays of that size."""


class RawTensor(Protocol):
    """Values as stored: `data` a C-ordered numpy array, bfloat16 as uint16."""

    @property
    def dtype(self) -> str: ...

    @property
    def data(self) -> Any: ...


class TensorSource(Protocol):
    """The part of a checkpoint the loader needs."""

    def read(self, name: str, rows: tuple[int, int] | None = None) -> RawTensor:
        """Rows [start, stop) of a tensor, or all of it."""

    def read_quantized(self, module: str, rows: tuple[int, int] | None = None) -> QuantizedLinear:
        """Rows of a quantized linear in its codes. Called for those that `facts` says are quantized."""


def load_decoder(
    checkpoint: TensorSource,
    facts: ModelFacts,
    kernels: Kernels,
    weight_dtype: torch.dtype,
    *,
    precision: Precision | None = None,
    max_model_len: int | None = None,
    rope: RopeFacts | None = None,
    on_progress: Progress | None = None,
) -> Decoder:
    """Reads every tensor once, in `weight_dtype` for matrices and the table's dtype for norms and biases.

    Args:
        precision: w4a16 and w8a16 hold linear layers in codes: those of a quantized checkpoint as they are stored,
            floats rounded to nearest; and the head in 8 bits, where the table says so. Else everything is floats, a
            quantized checkpoint's codes included.
        max_model_len: positions the decoder can take; the trained length if None.
        rope: in place of the checkpoint's rotary embedding (`override_rope`).

    Names and shapes were checked when the checkpoint was opened. Raises CheckpointError for an architecture that is not
    run and for values that cannot be held; SpecError where `precision` cannot hold this model.
    """
    loader = _Loader(checkpoint, facts, kernels, weight_dtype, precision, on_progress)
    names, tied = loader.names, facts.tie_embeddings
    embedding = loader.matrix(names.embedding) if tied else loader.whole(names.embedding)
    layers = [_load_layer(loader, spec, index) for index, spec in enumerate(facts.layers)]
    final_norm = loader.norm(names.final_norm, facts.final_norm)
    head = embedding if tied else loader.matrix(names.head)
    if rope is not None and rope != facts.rope:
        facts = with_rope(facts, rope)
    positions = max_model_len or facts.max_position
    tables = [rope_table(facts, one, positions, kernels.device) for one in facts.ropes]
    return_freed_memory()
    return Decoder(facts, kernels, tables, embedding, layers, final_norm, head)


def _load_layer(loader: "_Loader", spec: LayerSpec, index: int) -> DecoderLayer:
    prefix = loader.names.layer.format(index)
    found: dict[str, Any] = {}
    for role in norm_sizes(loader.facts, spec):
        found[role] = loader.norm(prefix + loader.names.norms[role], spec.norm)
    for matrix in FUSED:
        linears = stored_linears(loader.names, spec, matrix)
        found[matrix] = loader.fused(prefix, linears)
        biased = has_bias(spec, fused_roles(spec, matrix)[0])
        found[f"{matrix}_bias"] = loader.bias(prefix, linears) if biased else None
    return DecoderLayer(spec, **found)


class _Loader:
    """Reads, converts, fuses and packs, and keeps count."""

    def __init__(
        self,
        checkpoint: TensorSource,
        facts: ModelFacts,
        kernels: Kernels,
        weight_dtype: torch.dtype,
        precision: Precision | None,
        on_progress: Progress | None,
    ) -> None:
        self.checkpoint = checkpoint
        self.facts = facts
        self.kernels = kernels
        self.weight_dtype = weight_dtype
        self.bits = None if precision is None else CODE_BITS.get(precision)
        self.shapes = expected_tensors(facts)
        self.on_progress = on_progress
        self.coded: dict[str, tuple[Literal[4, 8], int]] = {}
        """Bits of a code and columns that share a scale, of each weight that is held in codes."""
        self.names = names = find_family(facts.architecture).names
        for index, spec in enumerate(facts.layers):
            for matrix in FUSED:
                linears = stored_linears(names, spec, matrix)
                modules = [names.layer.format(index) + linear.module for linear in linears]
                columns = self.shapes[f"{modules[0]}.weight"][1]
                group = None if precision is None else held_group(facts, precision, modules, columns)
                if group is not None and self.bits is not None:
                    self.coded |= {f"{module}.weight": (self.bits, group) for module in modules}
        self.head_name = f"{names.embedding if facts.tie_embeddings else names.head}.weight"
        """A checkpoint has it whole, whatever its linear weights are."""
        group = None if precision is None else head_group(facts, precision, kernels.facts)
        if group is not None:
            self.coded[self.head_name] = (8, group)
        self.done = 0
        self.total = sum(self._bytes(name) for name in self.shapes)

    def whole(self, module: str) -> Weight:
        """A matrix outside the layers, packed as floats."""
        return self.kernels.pack(self._stack([f"{module}.weight"], self.weight_dtype))

    def matrix(self, module: str) -> Weight:
        """The same in codes, where it is to be held so."""
        return self._packed([f"{module}.weight"], None)

    def fused(self, prefix: str, linears: Sequence[Linear]) -> Weight:
        """The stored linears of one fused matrix, stacked and packed: in codes, where they are to be held so."""
        return self._packed([f"{prefix}{linear.module}.weight" for linear in linears], self._groups(linears))

    def bias(self, prefix: str, linears: Sequence[Linear]) -> Tensor:
        """Their biases, in the same order."""
        names = [f"{prefix}{linear.module}.bias" for linear in linears]
        return self._stack(names, self.kernels.dtype, self._groups(linears))

    def norm(self, module: str, spec: NormSpec) -> Norm:
        """A norm's vectors, the offset added in float32: 16 bits would round the sum."""
        weight = self._stack([f"{module}.weight"], torch.float32 if spec.offset else self.kernels.dtype)
        bias = self._stack([f"{module}.bias"], self.kernels.dtype) if spec.bias else None
        return Norm(spec, weight.add_(spec.offset) if spec.offset else weight, bias)

    def _groups(self, linears: Sequence[Linear]) -> tuple[int, int] | None:
        """(key-value heads, queries that share one) of a grouped layout."""
        facts = self.facts
        grouped = linears[0].layout == "grouped"
        return (facts.num_kv_heads, facts.num_heads // facts.num_kv_heads) if grouped else None

    def _packed(self, names: Sequence[str], groups: tuple[int, int] | None) -> Weight:
        if names[0] in self.coded:
            return self.kernels.pack_quantized(self._stack_codes(names, groups))
        return self.kernels.pack(self._stack(names, self.weight_dtype, groups))

    def _stack(self, names: Sequence[str], dtype: torch.dtype, groups: tuple[int, int] | None = None) -> Tensor:
        rows = [self.shapes[name][0] for name in names]
        columns = self.shapes[names[0]][1:]
        fused = torch.empty(sum(rows), *columns, dtype=dtype, device=self.kernels.device)
        first = 0
        for name, count in zip(names, rows, strict=True):
            for start, stop, target in _runs(count, columns, groups, READ_ELEMENTS):
                fused[first + target : first + target + stop - start].copy_(self._read(name, start, stop))
            first += count
            self._advance(name)
        return fused

    def _stack_codes(self, names: Sequence[str], groups: tuple[int, int] | None) -> QuantizedMatrix:
        rows, columns = [self.shapes[name][0] for name in names], self.shapes[names[0]][1]
        bits, group = self.coded[names[0]]
        per_row = columns // group
        codes = torch.empty(sum(rows), columns, dtype=torch.uint8 if bits == 4 else torch.int8)
        scales: Tensor | None = None
        zeros = torch.full((sum(rows), per_row), MIDDLE[4], dtype=torch.uint8) if bits == 4 else None
        first = 0
        for name, count in zip(names, rows, strict=True):
            for start, stop, target in _runs(count, (columns,), groups, CODE_ELEMENTS):
                part, at = self._read_codes(name, start, stop), slice(first + target, first + target + stop - start)
                if scales is None:
                    scales = torch.empty(sum(rows), per_row, dtype=part.scales.dtype)
                codes[at].copy_(part.codes)
                scales[at].copy_(part.scales)
                if zeros is not None and part.zeros is not None:
                    zeros[at].copy_(part.zeros)
            first += count
            self._advance(name)
        assert scales is not None
        return QuantizedMatrix(bits, codes, scales, zeros)

    def _read_codes(self, name: str, start: int, stop: int) -> QuantizedMatrix:
        bits, group = self.coded[name]
        if name == self.head_name or self.facts.quantization is None:
            return round_to_nearest(self._read(name, start, stop).float(), bits, group, name)
        linear = self.checkpoint.read_quantized(name.removesuffix(".weight"), (start, stop))
        scales = torch.from_numpy(linear.scales).to(TORCH_DTYPES[linear.scale_dtype])
        zeros = None if linear.zeros is None else torch.from_numpy(linear.zeros)
        return QuantizedMatrix(bits, torch.from_numpy(linear.codes), scales, zeros)

    def _read(self, name: str, start: int, stop: int) -> Tensor:
        raw = self.checkpoint.read(name, (start, stop))
        if raw.dtype not in TORCH_DTYPES:
            raise CheckpointError("weights must be floating point", field=name, value=raw.dtype)
        values = torch.from_numpy(raw.data).view(TORCH_DTYPES[raw.dtype])
        return values.reshape(stop - start, *self.shapes[name][1:])

    def _bytes(self, name: str) -> int:
        shape = self.shapes[name]
        if name in self.coded:
            # Codes, and a scale with its zero point a group.
            (rows, columns), (bits, group) = shape, self.coded[name]
            return rows * (columns * bits // 8 + columns // group * (3 if bits == 4 else 4))
        dtype = self.weight_dtype if len(shape) == 2 else self.kernels.dtype
        # The norms of a model are of one kind; biases are what other vectors are called.
        if len(shape) == 1 and self.facts.final_norm.offset and name.endswith(".weight"):
            dtype = torch.float32
        return torch.Size(shape).numel() * dtype.itemsize

    def _advance(self, name: str) -> None:
        self.done += self._bytes(name)
        if self.on_progress is not None:
            self.on_progress(self.done, self.total)


def _runs(
    rows: int, columns: Sequence[int], groups: tuple[int, int] | None, most: int
) -> Iterator[tuple[int, int, int]]:
    """(first row, last row + 1, row of the fused weight) of each run to copy, of about `most` elements."""
    return _in_order(rows, columns, most) if groups is None else _ungrouped(rows, *groups)


def _in_order(rows: int, columns: Sequence[int], most: int) -> Iterator[tuple[int, int, int]]:
    """`_runs` of rows that lie as they are wanted."""
    step = max(1, most // max(1, torch.Size(columns).numel()))
    for start in range(0, rows, step):
        yield start, min(start + step, rows), start


def _ungrouped(rows: int, kv_heads: int, group: int) -> Iterator[tuple[int, int, int]]:
    """The same for rows that lie as [kv_heads, group + 2, head_dim]: to all queries, then all keys, then all values."""
    dim = rows // (kv_heads * (group + 2))
    for head in range(kv_heads):
        start = head * (group + 2) * dim
        yield start, start + group * dim, head * group * dim
        for extra in (0, 1):
            key = start + (group + extra) * dim
            yield key, key + dim, (kv_heads * (group + extra) + head) * dim
