"""Bytes of weights and cache, exact for each rank; and the sums behind the workspace. Pure arithmetic."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from plimsoll.api.device import TORCH_TABLE, DeviceFacts, DeviceKind, TableFacts
from plimsoll.api.errors import SpecError
from plimsoll.api.families.registry import find_family
from plimsoll.api.layer_tensors import FUSED, fused_roles, has_bias, norm_sizes, role_shape, stored_linears
from plimsoll.api.model import ModelFacts
from plimsoll.api.quantization import DTYPE_OF_BITS, PRECISION_OF_BITS, ignores

Precision = Literal["float32", "bfloat16", "float16", "w8a16", "w4a16"]
CachePrecision = Literal["auto", "int8", "int4"]

#: Bytes of one weight that is kept whole.
WHOLE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
#: Bits of a linear weight's code where weights are quantized.
CODE_BITS: Mapping[str, Literal[4, 8]] = {"w4a16": 4, "w8a16": 8}
#: Columns that share a scale where floats are rounded to 4 bits at load, the size preferred first.
GROUP_SIZES = (128, 64, 32)
#: int8 and int4 caches keep one (scale, minimum) pair of fp16 a head and token, for keys and for values each.
PAIR_BYTES = 4
#: Prompt positions whose logits exist at once when prompt log-probabilities are asked for.
PROMPT_LOGIT_ROWS = 16
#: Rows of logits that the sampler's copies of a slice amount to: edited, divided, filtered, summed, and four of them
#: sorted whole.
SAMPLER_ROWS = 128


@dataclass(frozen=True)
class Matrix:
    """A weight as the runtime fuses it: `rows` out, `columns` in, on one rank, `count` times. Embedding and head are
    not `linear`."""

    rows: int
    columns: int
    linear: bool = True
    count: int = 1
    group: int | None = None
    """Columns that share a scale; None where it is held whole."""
    bits: Literal[4, 8] | None = None
    """Of a code; None where it is held whole."""


def element_bytes(precision: Precision) -> int:
    """Bytes of an element that is not quantized: the cache at `auto`, norms, an embedding, a whole head."""
    return WHOLE_BYTES.get(precision, 2)


def tensor_sizes(facts: ModelFacts) -> tuple[int, ...]:
    """Sizes of a tensor-parallel group that divide this model evenly, up to 64."""
    return tuple(size for size in range(1, 65) if not _undivided(facts, size))


def check_tensor_size(facts: ModelFacts, tensor: int) -> None:
    """Raises SpecError where heads or the feed-forward width do not divide by `tensor`, with the sizes that work."""
    reason = _undivided(facts, tensor)
    if reason:
        raise SpecError(
            reason, field="spec.parallelism.tensor", value=tensor,
            fix=f"Sizes that work: {', '.join(map(str, tensor_sizes(facts)))}",
        )  # fmt: skip


def _undivided(facts: ModelFacts, tensor: int) -> str | None:
    if tensor < 1:
        return "must be 1 or more"
    if facts.num_heads % tensor:
        return f"{facts.num_heads} attention heads do not divide by {tensor}"
    if facts.num_kv_heads % tensor and tensor % facts.num_kv_heads:
        return f"{facts.num_kv_heads} key-value heads neither divide by {tensor} nor repeat evenly over it"
    if facts.intermediate_size % tensor:
        return f"the feed-forward width {facts.intermediate_size} does not divide by {tensor}"
    return None


def kv_heads_per_rank(facts: ModelFacts, tensor: int) -> int:
    """Key-value heads that one rank holds; each is replicated where the group is larger than their number."""
    return max(1, facts.num_kv_heads // tensor)


def replication(facts: ModelFacts, tensor: int) -> str | None:
    """What a tensor-parallel group holds more than once, in words; None where every head lies on one rank."""
    if tensor <= facts.num_kv_heads:
        return None
    return f"each of the {facts.num_kv_heads} key-value heads lies on {tensor // facts.num_kv_heads} devices"


def matrices(
    facts: ModelFacts, tensor: int, precision: Precision = "bfloat16", table: TableFacts = TORCH_TABLE
) -> Iterator[Matrix]:
    """Every matrix that rank 0 holds with the kernels of `table`; no rank holds more.

    Raises:
        SpecError: `precision` cannot hold this model so (`held_group`).
    """
    hidden, vocab = facts.hidden_size, -(-facts.vocab_size // tensor)
    names = find_family(facts.architecture).names
    bits = CODE_BITS.get(precision)
    group = head_group(facts, precision, table)
    yield Matrix(vocab, hidden, linear=False, group=group, bits=None if group is None else 8)
    if not facts.tie_embeddings:
        yield Matrix(vocab, hidden, linear=False)
    found: Counter[Matrix] = Counter()
    # Layers may differ in what a quantized checkpoint keeps whole; else those of one spec are alike.
    apart = facts.quantization is not None and bits is not None
    runs = [(spec, [index]) for index, spec in enumerate(facts.layers)] if apart else []
    for spec, indices in runs or [(spec, [0] * count) for spec, count in facts.kinds]:
        prefix = names.layer.format(indices[0])
        for matrix in FUSED:
            roles = fused_roles(spec, matrix)
            modules = [prefix + linear.module for linear in stored_linears(names, spec, matrix)]
            rows = sum(role_shape(facts, role, tensor)[0] for role in roles)
            columns = role_shape(facts, roles[0], tensor)[1]
            group = held_group(facts, precision, modules, columns, tensor)
            found[Matrix(rows, columns, group=group, bits=None if group is None else bits)] += len(indices)
    for one, count in found.items():
        yield replace(one, count=count)


def head_group(facts: ModelFacts, precision: Precision, table: TableFacts) -> int | None:
    """Columns that share a scale in the head, and in the embedding that is tied to it; None where they are whole.

    Where linear weights are codes a whole head would be most of what a small model reads for a token: it is held in 8
    bits, which cost little beside codes of 4 (docs/formats.md).
    """
    if precision not in CODE_BITS or table.head_group is None:
        return None
    return table.head_group if facts.hidden_size % table.head_group == 0 else facts.hidden_size


def held_group(
    facts: ModelFacts, precision: Precision, modules: Sequence[str], columns: int, tensor: int = 1
) -> int | None:
    """Columns that share a scale in the fused matrix of `modules`, as `precision` holds it; None where that is whole.

    A quantized checkpoint is held as it is stored. A matrix of which a part is stored whole is whole.

    Args:
        columns: of the matrix, on one of `tensor` ranks.

    Raises:
        SpecError: the checkpoint has codes of other bits, or no group divides the columns.
    """
    bits = CODE_BITS.get(precision)
    if bits is None:
        return None
    said = facts.quantization
    if said is None:
        return columns if bits == 8 else _own_group(columns)
    if said.bits != bits:
        kept = PRECISION_OF_BITS[said.bits]
        raise SpecError(
            f"the checkpoint's weights are {said.format} of {said.bits} bits",
            field="spec.precision", value=precision, fix=f"Use auto or {kept}, or bfloat16 to make them floats again",
        )  # fmt: skip
    for module in modules:
        fact = None if facts.tensors is None else facts.tensors.get(f"{module}.weight")
        if fact is not None and fact.dtype != DTYPE_OF_BITS[bits]:
            return None
        if fact is None and any(ignores(pattern, module) for pattern in said.ignored):
            return None
    group = said.group_size or columns
    if columns % group:
        raise SpecError(
            f"groups of {group} columns do not divide the {columns} that each of {tensor} devices would hold",
            field="spec.parallelism.tensor", value=tensor, fix="Use fewer devices, or a checkpoint of smaller groups",
        )  # fmt: skip
    return group


def slow_codes(precision: Precision, kind: DeviceKind, table: TableFacts) -> str | None:
    """What to know where `precision` saves memory and costs time; None where it costs none."""
    if precision not in CODE_BITS or kind != "cpu" or table != TORCH_TABLE:
        return None
    return (
        f"{precision} saves memory and is slower than bfloat16 here: plain torch makes floats of the codes at every "
        "step; a C compiler on this machine gives kernels that multiply them as they are"
    )


def _own_group(columns: int) -> int:
    group = next((size for size in GROUP_SIZES if columns % size == 0), None)
    if group is None:
        raise SpecError(
            f"4-bit weights need a group size in {list(GROUP_SIZES)}; none divides {columns} columns",
            field="spec.precision", value="w4a16", fix="Use w8a16 or bfloat16",
        )  # fmt: skip
    return group


def vector_elements(facts: ModelFacts, tensor: int) -> int:
    """Elements of norms and biases of one rank; they stay in the precision of activations."""
    return sum(_norms_and_biases(facts, tensor))


def vector_bytes(facts: ModelFacts, tensor: int, activation: int) -> int:
    """Bytes of norms and biases of one rank. Weights that an offset was added to are float32: 16 bits would round it.

    Args:
        activation: bytes of one activation.
    """
    norms, biases = _norms_and_biases(facts, tensor)
    return norms * (4 if facts.final_norm.offset else activation) + biases * activation


def _norms_and_biases(facts: ModelFacts, tensor: int) -> tuple[int, int]:
    norms, biases = facts.hidden_size, facts.hidden_size if facts.final_norm.bias else 0
    for spec, count in facts.kinds:
        lengths = sum(norm_sizes(facts, spec).values())
        norms += count * lengths
        biases += count * lengths if spec.norm.bias else 0
        roles = [role for matrix in FUSED for role in fused_roles(spec, matrix) if has_bias(spec, role)]
        biases += count * sum(role_shape(facts, role, tensor)[0] for role in roles)
    return norms, biases


def weight_bytes(facts: ModelFacts, precision: Precision, device: DeviceFacts, tensor: int = 1) -> int:
    """Bytes of all weights of the fullest rank as they lie in memory, quantized ones with scales and zero points.

    Raises:
        SpecError: `precision` cannot hold this model (`held_group`).
    """
    activation = device.table.activation_bytes or element_bytes(precision)
    total = vector_bytes(facts, tensor, activation)
    for matrix in matrices(facts, tensor, precision, device.table):
        rows = -(-matrix.rows // device.table.row_tile) * device.table.row_tile
        total += matrix.count * _matrix_bytes(rows, matrix, precision)
    return total


def _matrix_bytes(rows: int, matrix: Matrix, precision: Precision) -> int:
    if matrix.group is None:
        return rows * matrix.columns * element_bytes(precision)
    groups = matrix.columns // matrix.group
    if matrix.bits == 8:
        # A scale is held in float32.
        return rows * (matrix.columns + groups * 4)
    # A scale is 16 bits, a zero point a byte.
    return rows * (matrix.columns // 2 + groups * 3)


def block_bytes(
    facts: ModelFacts, block_size: int, precision: Precision, cache: CachePrecision = "auto", tensor: int = 1
) -> int:
    """Bytes of one block of `block_size` tokens over all layers of one rank, keys and values, with their scales."""
    heads = kv_heads_per_rank(facts, tensor)
    if cache == "auto":
        vector = facts.head_dim * element_bytes(precision)
    else:
        bits = 8 if cache == "int8" else 4
        vector = -(-facts.head_dim * bits // 8) + PAIR_BYTES
    return facts.num_layers * 2 * heads * block_size * vector


def workspace_terms(
    facts: ModelFacts, precision: Precision, device: DeviceFacts, tensor: int,
    max_batched_tokens: int, max_running: int, max_length: int,
) -> Mapping[str, int]:  # fmt: skip
    """Bytes that come and go while a step runs, by name.

    - `activations`: a layer at the largest chunk: the residual, the normed input and what a block adds to it; qkv and
      its mixed values; gate, up and their product; normed queries and keys where the model has such norms.
    - `logits`: float32 logits of every running sequence, or of a slice of prompt positions where those are more, and
      `SAMPLER_ROWS` more for the sampler, which works on slices of them.
    - `positions`: float32 cosines and sines up to the longest sequence, of each rotary embedding.
    - `kernels`: what the table of kernels keeps for itself.
    """
    activation = device.table.activation_bytes or element_bytes(precision)
    heads, kv_heads = facts.num_heads // tensor, kv_heads_per_rank(facts, tensor)
    inner = facts.intermediate_size // tensor
    rows = []
    for spec, _ in facts.kinds:
        row = 3 * facts.hidden_size + (2 * heads + 2 * kv_heads) * facts.head_dim + (3 if spec.gated else 2) * inner
        if spec.qk_norm is not None:
            row += (heads + kv_heads) * facts.head_dim
        # What a norm after attention makes is alive beside what the norm before the MLP makes of it.
        rows.append(row + (facts.hidden_size if spec.placement == "around" else 0))
    row = max(rows)
    return {
        "activations": max_batched_tokens * row * activation,
        "logits": (max(max_running, PROMPT_LOGIT_ROWS) + SAMPLER_ROWS) * facts.vocab_size * 4,
        "positions": max_length * sum(rope.rotated(facts.head_dim) for rope in facts.ropes) * 4,
        "kernels": device.table.scratch_bytes,
    }
