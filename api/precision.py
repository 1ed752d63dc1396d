"""How weights are held: precisions, and the columns that share a scale where they are codes. Pure arithmetic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from plimsoll.api.blocks import SUPER, block_bits, held_together
from plimsoll.api.device import TORCH_TABLE, DeviceKind, TableFacts
from plimsoll.api.errors import SpecError
from plimsoll.api.families.registry import find_family
from plimsoll.api.model import ModelFacts
from plimsoll.api.quantization import DTYPE_OF_BITS, PRECISION_OF_BITS, ignores

Precision = Literal["float32", "bfloat16", "float16", "w8a16", "w4a16"]
HeldCache = Literal["float", "int8", "int4"]
CachePrecision = HeldCache | Literal["auto"]
ActivationPrecision = Literal["auto", "int8", "bfloat16"]

#: Bytes of one weight that is kept whole.
WHOLE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
#: Bits of a linear weight's code where weights are quantized.
CODE_BITS: Mapping[str, Literal[4, 8]] = {"w4a16": 4, "w8a16": 8}
#: Bits of a value's code where the cache is quantized.
CACHE_BITS: Mapping[str, Literal[4, 8]] = {"int8": 8, "int4": 4}
#: Bits of a key's code by those of a value's. Keys lose most by rounding: docs/cache-precision.md.
KEY_BITS: Mapping[int, Literal[6, 8]] = {8: 8, 4: 6}
#: Columns that share a scale where floats are rounded to 4 bits at load, the size preferred first.
GROUP_SIZES = (128, 64, 32)


def element_bytes(precision: Precision) -> int:
    """Bytes of an element that is not quantized: a cache of floats, norms, an embedding, a whole head."""
    return WHOLE_BYTES.get(precision, 2)


def code_bytes(bits: int, head_dim: int) -> int:
    """Bytes of the codes of one head's key or value. Of 6 bits the upper two of 4 numbers share a byte."""
    return head_dim if bits == 8 else head_dim // 2 + (-(-head_dim // 4) if bits == 6 else 0)


@dataclass(frozen=True)
class Codes:
    """How a matrix is held in codes of few bits."""

    bits: Literal[4, 8]
    group: int
    """Columns that share a scale."""
    stored: bool = False
    """As the checkpoint stores them; else rounded at load."""
    minimums: bool = False
    """A group has a minimum of 16 bits in place of a zero point of 8; in super-blocks one of 8."""
    supers: bool = False
    """Scales have 8 bits, and 16 of each super-block of 256 columns multiply them."""

    @property
    def uncut(self) -> int:
        """Columns that ranks do not split."""
        return SUPER if self.supers else self.group

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns`. Scales of 4-bit codes, or beside minimums, have 16 bits, others are float32."""
        groups, each = columns // min(self.group, columns), 4 if self.bits == 8 or self.minimums else 3
        if self.supers:
            groups, each = groups + columns // SUPER * 2, 2 if self.minimums else 1
        return columns * self.bits // 8 + groups * each


def head_codes(facts: ModelFacts, precision: Precision, table: TableFacts) -> Codes | None:
    """How the head is held, and the embedding that is tied to it; None where they are whole.

    Where linear weights are codes a whole head would be most of what a small model reads for a token: it is held in 8
    bits, which cost little beside codes of 4 (docs/formats.md). One that a GGUF stores in blocks is held as it is
    stored. That of other blocks is whole where the linears are held as they are stored: nothing is rounded again.
    """
    if precision not in CODE_BITS or table.head_group is None:
        return None
    names = find_family(facts.architecture).names
    stored = stored_codes(facts, [names.embedding if facts.tie_embeddings else names.head])
    if stored is not None or block_bits(facts) == CODE_BITS[precision]:
        return stored
    return Codes(8, table.head_group if facts.hidden_size % table.head_group == 0 else facts.hidden_size)


def embedding_codes(facts: ModelFacts, precision: Precision, table: TableFacts) -> Codes | None:
    """How the embedding is held; None where it is whole. One of its own, which is looked up and not multiplied by, is
    never rounded; blocks of a GGUF are held as they are stored."""
    if facts.tie_embeddings:
        return head_codes(facts, precision, table)
    if precision not in CODE_BITS or table.head_group is None:
        return None
    return stored_codes(facts, [find_family(facts.architecture).names.embedding])


def held_codes(facts: ModelFacts, precision: Precision, modules: Sequence[str], columns: int) -> Codes | None:
    """How `precision` holds the fused matrix of `modules`; None where it is whole.

    A quantized checkpoint is held as it is stored, and so are all of a GGUF's blocks where most of them have codes of
    this precision's bits; elsewhere those of its matrices that do. A matrix of which a part is stored whole, or in
    blocks that nothing holds together, is whole.

    Args:
        columns: of the whole matrix. Ranks share a scale as one device does, so that they hold the same codes.

    Raises:
        SpecError: the checkpoint has codes of other bits, or no group divides the columns.
    """
    bits = CODE_BITS.get(precision)
    if bits is None:
        return None
    said = facts.quantization
    if said is None:
        stored = stored_codes(facts, modules)
        if block_bits(facts) == bits or (stored is not None and stored.bits == bits):
            return stored
        return Codes(bits, columns if bits == 8 else _own_group(columns))
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
            f"groups of {group} columns do not divide a matrix of {columns}",
            field="spec.precision", value=precision, fix="Use a checkpoint of smaller groups",
        )  # fmt: skip
    return Codes(bits, group, stored=True)


def stored_codes(facts: ModelFacts, modules: Sequence[str]) -> Codes | None:
    """How blocks of a GGUF are held as they are stored, those of one matrix together; None where they are not."""
    if facts.quantization is not None:
        return None
    # The report of an inspection may have been forged: a tensor that it leaves out has no type.
    found = [(facts.tensors or {}).get(f"{module}.weight") for module in modules]
    block = held_together("" if fact is None else fact.dtype for fact in found)
    if block is None:
        return None
    return Codes(block.bits, block.group, stored=True, minimums=block.minimum, supers=block.size == SUPER)


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
