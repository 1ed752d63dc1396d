"""From a checkpoint to a Decoder, in runs of rows: never more than one fused weight beyond what is kept."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from plimsoll.api.errors import CheckpointError
from plimsoll.api.families.family import Linear
from plimsoll.api.families.registry import find_family
from plimsoll.api.layer_tensors import FUSED, fused_roles, has_bias, norm_sizes, stored_linears
from plimsoll.api.model import LayerSpec, ModelFacts, NormSpec, RopeFacts
from plimsoll.api.precision import Codes, Precision, embedding_codes, head_codes, held_codes
from plimsoll.api.shard import Run, Shard, undivided
from plimsoll.api.share import Share, Step, shares
from plimsoll.checkpoint.quantized.linear import QuantizedLinear
from plimsoll.runtime.kernels.quantized import QuantizedMatrix
from plimsoll.runtime.kernels.table import Kernels
from plimsoll.runtime.machine.heap import return_freed_memory
from plimsoll.runtime.machine.large_pages import large_pages
from plimsoll.runtime.models.decoder import Decoder
from plimsoll.runtime.models.group import Group
from plimsoll.runtime.models.held_together import as_held
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
ROUNDING = 1 << 20
"""Bytes beside an eighth of the weights that a table may fill up rows and groups with."""


class RawTensor(Protocol):
    """Values as stored: `data` a C-ordered numpy array, bfloat16 as uint16."""

    @property
    def dtype(self) -> str: ...

    @property
    def data(self) -> Any: ...


class TensorSource(Protocol):
    """The part of a checkpoint the loader needs. Rows and columns are [start, stop); None is all of them."""

    def part(self, shard: Shard | None) -> "TensorSource":
        """The source as the rank of `shard` reads it. Raises SpecError."""

    def read(
        self, name: str, rows: Run | None = None, columns: Run | None = None, within: Run | None = None
    ) -> RawTensor:
        """A part of a tensor. `within`: the rows around it that are read next, for formats that read them at once."""

    def read_quantized(
        self, module: str, rows: Run | None = None, columns: Run | None = None, within: Run | None = None
    ) -> QuantizedLinear:
        """A part of a quantized linear in its codes. Called for those that `facts` says are quantized."""


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
    shard: Shard | None = None,
    group: Group | None = None,
) -> Decoder:
    """Reads every tensor once, in `weight_dtype` for matrices and the table's dtype for norms and biases.

    Args:
        facts: of the whole model.
        precision: w4a16 and w8a16 hold linear layers in codes: those of a quantized checkpoint as they are stored,
            floats rounded to nearest; and the head in 8 bits, where the table says so. Else everything is floats, a
            quantized checkpoint's codes included.
        max_model_len: positions the decoder can take; the trained length if None.
        rope: in place of the checkpoint's rotary embedding (`override_rope`).
        shard: what this rank holds: it alone is read. The whole model if None.
        group: the ranks of `shard`. They load together: codes of a row that is split have the scale of the whole row.

    Names and shapes were checked when the checkpoint was opened. Raises CheckpointError for an architecture that is not
    run and for values that cannot be held; SpecError where `precision` cannot hold this model.
    """
    if (shard and (shard.rank, shard.tensor)) != (group and (group.rank, group.size)):
        raise ValueError(f"{shard} is not the part of a rank of {group}")
    loader = _Loader(checkpoint.part(shard), facts, kernels, weight_dtype, precision, on_progress, shard, group)
    names, tied = loader.names, facts.tie_embeddings
    with large_pages(loader.total // 8 * 9 + ROUNDING):
        embedding = loader.matrix(names.embedding)
        layers = [_load_layer(loader, spec, index) for index, spec in enumerate(facts.layers)]
        final_norm = loader.norm(names.final_norm, facts.final_norm)
        head = embedding if tied else loader.matrix(names.head)
    if rope is not None and rope != facts.rope:
        facts = with_rope(facts, rope)
    positions = max_model_len or facts.max_position
    tables = [rope_table(facts, one, positions, kernels.device) for one in facts.ropes]
    return_freed_memory()
    own = facts if shard is None else shard.facts(facts)
    return Decoder(own, kernels, tables, embedding, layers, final_norm, head, shard, group)


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
        shard: Shard | None,
        group: Group | None,
    ) -> None:
        self.checkpoint = checkpoint
        self.facts = facts
        self.kernels = kernels
        self.weight_dtype = weight_dtype
        self.shares = shares(facts, shard or undivided(facts))
        self.group = group
        self.on_progress = on_progress
        self.coded: dict[str, Codes] = {}
        """Of each weight that is held in codes; groups are of the whole row's columns."""
        self.names = names = find_family(facts.architecture).names
        for index, spec in enumerate(facts.layers):
            for matrix in FUSED:
                linears = stored_linears(names, spec, matrix)
                modules = [names.layer.format(index) + linear.module for linear in linears]
                columns = self.shares[f"{modules[0]}.weight"].of
                codes = None if precision is None else held_codes(facts, precision, modules, columns)
                if codes is not None:
                    self.coded |= {f"{module}.weight": codes for module in modules}
        for module, codes_of in ((names.head, head_codes), (names.embedding, embedding_codes)):
            codes = None if precision is None else codes_of(facts, precision, kernels.facts)
            if codes is not None:
                self.coded[f"{module}.weight"] = codes
        self.done = 0
        self.total = sum(map(self._bytes, self.shares.values()))

    def matrix(self, module: str) -> Weight:
        """A matrix outside the layers: in codes, where it is to be held so."""
        return self._packed([f"{module}.weight"])

    def fused(self, prefix: str, linears: Sequence[Linear]) -> Weight:
        """The stored linears of one fused matrix, stacked and packed: in codes, where they are to be held so."""
        return self._packed([f"{prefix}{linear.module}.weight" for linear in linears])

    def bias(self, prefix: str, linears: Sequence[Linear]) -> Tensor | None:
        """Their biases, in the same order; None where another rank adds them."""
        names = [f"{prefix}{linear.module}.bias" for linear in linears]
        return self._stack(names, self.kernels.dtype) if names[0] in self.shares else None

    def norm(self, module: str, spec: NormSpec) -> Norm:
        """A norm's vectors, the offset added in float32: 16 bits would round the sum."""
        weight = self._stack([f"{module}.weight"], torch.float32 if spec.offset else self.kernels.dtype)
        bias = self._stack([f"{module}.bias"], self.kernels.dtype) if spec.bias else None
        return Norm(spec, weight.add_(spec.offset) if spec.offset else weight, bias)

    def _packed(self, names: Sequence[str]) -> Weight:
        if names[0] in self.coded:
            return self.kernels.pack_quantized(self._stack_codes(names))
        return self.kernels.pack(self._stack(names, self.weight_dtype))

    def _stack(self, names: Sequence[str], dtype: torch.dtype) -> Tensor:
        parts = [self.shares[name] for name in names]
        shape = (sum(part.rows for part in parts), *(() if parts[0].vector else (parts[0].width,)))
        fused = torch.empty(shape, dtype=dtype, device=self.kernels.device)
        for part in parts:
            for step in part.steps(READ_ELEMENTS):
                values = self._read(part, step)
                fused[step[2] : step[2] + len(values)].copy_(values)
            self._advance(part)
        return fused

    def _stack_codes(self, names: Sequence[str]) -> QuantizedMatrix:
        parts = [self.shares[name] for name in names]
        held, rows = self.coded[names[0]], sum(part.rows for part in parts)
        stacked: dict[str, Tensor] = {}
        for part in parts:
            for step in part.steps(CODE_ELEMENTS):
                for name, values in as_held(self._read_codes(part, step), held).tensors():
                    if name not in stacked:
                        stacked[name] = torch.empty(rows, values.shape[1], dtype=values.dtype)
                    stacked[name][step[2] : step[2] + len(values)].copy_(values)
            self._advance(part)
        return QuantizedMatrix(held.bits, **stacked)

    def _read_codes(self, share: Share, step: Step) -> QuantizedMatrix:
        held = self.coded[share.name]
        if not held.stored:
            # A scale of columns that lie on several ranks is the whole row's.
            largest = self.group.largest if self.group is not None and held.group > share.width else None
            return round_to_nearest(
                self._read(share, step).float(), held.bits, min(held.group, share.width), share.name, largest
            )  # fmt: skip
        start, stop, _, within = step
        linear = self.checkpoint.read_quantized(
            share.name.removesuffix(".weight"), (start, stop), share.columns, within
        )
        scales = torch.from_numpy(linear.scales)
        if linear.super_scales is None:
            scales = scales.to(TORCH_DTYPES[linear.scale_dtype])
        others = (linear.zeros, linear.minimums, linear.super_scales, linear.super_minimums)
        return QuantizedMatrix(
            linear.bits, torch.from_numpy(linear.codes), scales,
            *(None if part is None else torch.from_numpy(part) for part in others),
        )  # fmt: skip

    def _read(self, share: Share, step: Step) -> Tensor:
        start, stop, _, within = step
        raw = self.checkpoint.read(share.name, (start, stop), share.columns, within)
        if raw.dtype not in TORCH_DTYPES:
            raise CheckpointError("weights must be floating point", field=share.name, value=raw.dtype)
        values = torch.from_numpy(raw.data).view(TORCH_DTYPES[raw.dtype])
        return values.reshape(stop - start, *(() if share.vector else (share.width,)))

    def _bytes(self, share: Share) -> int:
        if share.name in self.coded:
            return share.rows * self.coded[share.name].row_bytes(share.width)
        if not share.vector:
            return share.rows * share.width * self.weight_dtype.itemsize
        # The norms of a model are of one kind; biases are what other vectors are called.
        offset = self.facts.final_norm.offset and share.name.endswith(".weight")
        return share.rows * (torch.float32 if offset else self.kernels.dtype).itemsize

    def _advance(self, share: Share) -> None:
        self.done += self._bytes(share)
        if self.on_progress is not None:
            self.on_progress(self.done, self.total)
