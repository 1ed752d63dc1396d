"""From a checkpoint to a Decoder, in runs of rows: never more than one fused weight beyond what is kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from plimsoll.api.architecture import Architecture, find_architecture
from plimsoll.api.errors import CheckpointError
from plimsoll.api.facts import expected_tensors
from plimsoll.api.model import ModelFacts, RopeFacts
from plimsoll.api.sizes import CODE_BITS, Precision, head_group, held_group
from plimsoll.checkpoint.quantized.linear import MIDDLE, QuantizedLinear
from plimsoll.runtime.heap import return_freed_memory
from plimsoll.runtime.kernels.quantized import QuantizedMatrix
from plimsoll.runtime.kernels.table import DecoderLayer, Kernels, Weight
from plimsoll.runtime.models.decoder import Decoder
from plimsoll.runtime.models.rope import rope_table
from plimsoll.runtime.models.rounding import round_to_nearest

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
        """Rows of a quantised linear in its codes. Called for those that `facts` says are quantised."""


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
        precision: w4a16 and w8a16 hold linear layers in codes: those of a quantised checkpoint as they are stored,
            floats rounded to nearest; and the head in 8 bits, where the table says so. Else everything is floats, a
            quantised checkpoint's codes included.
        max_model_len: positions the decoder can take; the trained length if None.
        rope: in place of the checkpoint's rotary embedding (`override_rope`).

    Names and shapes were checked when the checkpoint was opened. Raises CheckpointError for an architecture that is not
    run and for values that cannot be held; SpecError where `precision` cannot hold this model.
    """
    arch = find_architecture(facts.architecture)
    loader = _Loader(checkpoint, facts, kernels, weight_dtype, precision, on_progress)
    tied = facts.tie_embeddings
    embedding = loader.linear((arch.embedding,)) if tied else loader.weight((arch.embedding,))
    layers = [_load_layer(loader, arch, facts, index) for index in range(facts.num_layers)]
    final_norm = loader.vector((f"{arch.final_norm}.weight",))
    head = embedding if tied else loader.linear((arch.head,))
    table = rope_table(facts, rope or facts.rope, max_model_len or facts.max_position, kernels.device)
    return_freed_memory()
    return Decoder(facts, kernels, table, embedding, layers, final_norm, head)


def _load_layer(loader: "_Loader", arch: Architecture, facts: ModelFacts, index: int) -> DecoderLayer:
    prefix = arch.layer.format(index)
    qkv, output, gate_up, down = _fused(arch, index)
    groups = (facts.num_kv_heads, facts.num_heads // facts.num_kv_heads) if arch.qkv_layout == "grouped" else None
    sliding = facts.sliding_layers is None or facts.sliding_layers[index]
    return DecoderLayer(
        attention_norm=loader.vector((f"{prefix}{arch.attention_norm}.weight",)),
        qkv=loader.linear(qkv, groups),
        qkv_bias=loader.bias(qkv, facts.qkv_bias, groups),
        q_norm=loader.vector((f"{prefix}{arch.q_norm}.weight",)) if facts.qk_norm else None,
        k_norm=loader.vector((f"{prefix}{arch.k_norm}.weight",)) if facts.qk_norm else None,
        output=loader.linear(output),
        output_bias=loader.bias(output, facts.output_bias),
        mlp_norm=loader.vector((f"{prefix}{arch.mlp_norm}.weight",)),
        gate_up=loader.linear(gate_up),
        gate_up_bias=loader.bias(gate_up, facts.mlp_bias),
        down=loader.linear(down),
        down_bias=loader.bias(down, facts.mlp_bias),
        window=facts.sliding_window if sliding else None,
    )


def _fused(arch: Architecture, index: int) -> tuple[tuple[str, ...], ...]:
    """Modules of layer `index` that are fused into one matrix each: qkv, output, gate and up, down."""
    prefix = arch.layer.format(index)
    return tuple(
        tuple(prefix + name for name in names) for names in (arch.qkv, (arch.output,), arch.gate_up, (arch.down,))
    )


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
        arch = find_architecture(facts.architecture)
        for names in (names for index in range(facts.num_layers) for names in _fused(arch, index)):
            columns = self.shapes[f"{names[0]}.weight"][1]
            group = None if precision is None else held_group(facts, precision, names, columns)
            if group is not None and self.bits is not None:
                self.coded |= {f"{name}.weight": (self.bits, group) for name in names}
        self.head_name = f"{arch.embedding if facts.tie_embeddings else arch.head}.weight"
        """A checkpoint has it whole, whatever its linear weights are."""
        group = None if precision is None else head_group(facts, precision, kernels.facts)
        if group is not None:
            self.coded[self.head_name] = (8, group)
        self.done = 0
        self.total = sum(self._bytes(name) for name in self.shapes)

    def weight(self, names: Sequence[str], groups: tuple[int, int] | None = None) -> Weight:
        """The matrices `names` stacked and packed whole."""
        return self.kernels.pack(self._stack([f"{name}.weight" for name in names], self.weight_dtype, groups))

    def linear(self, modules: Sequence[str], groups: tuple[int, int] | None = None) -> Weight:
        """The same in codes, where they are to be held so."""
        if f"{modules[0]}.weight" not in self.coded:
            return self.weight(modules, groups)
        return self.kernels.pack_quantized(self._stack_codes([f"{name}.weight" for name in modules], groups))

    def bias(self, names: Sequence[str], present: bool, groups: tuple[int, int] | None = None) -> Tensor | None:
        return self._stack([f"{name}.bias" for name in names], self.kernels.dtype, groups) if present else None

    def vector(self, names: Sequence[str]) -> Tensor:
        return self._stack(names, self.kernels.dtype, None)

    def _stack(self, names: Sequence[str], dtype: torch.dtype, groups: tuple[int, int] | None) -> Tensor:
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
