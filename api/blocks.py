"""GGUF's blocks that kernels multiply as they are stored. Pure arithmetic on types.

A block is neighbouring values of a row: 32 with scales of float16 (Q4_0 is (code - 8) * scale, Q4_1 is code * scale +
minimum), or a super-block of 256 whose groups have scales of 6 or 8 bits, which a float16 multiplies (Q6_K is code *
(d * scale), Q4_K is code * (d * scale) - dmin * minimum). They are ggml's `block_q4_0` to `block_q6_K`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from plimsoll.api.model import DTYPE_BYTES, ModelFacts

#: Values of a block that is no super-block.
BLOCK = 32
#: Values of a super-block.
SUPER = 256


@dataclass(frozen=True)
class Block:
    """A type of block as it is held: with its own scales and minimums, and codes of 4 or 8 bits."""

    bits: Literal[4, 8]
    """Bits of a code. Codes of 5 and 6 bits are held in 8."""
    group: int = BLOCK
    """Values that share a scale."""
    minimum: bool = False
    """Whether code 0 stands for a minimum of its own in each group."""
    size: int = BLOCK
    """Values of a block."""


#: By type, those that are held as they are stored.
BLOCKS: Mapping[str, Block] = {
    "Q4_0": Block(4),
    "Q4_1": Block(4, minimum=True),
    "Q5_0": Block(8),
    "Q5_1": Block(8, minimum=True),
    "Q8_0": Block(8),
    "Q4_K": Block(4, minimum=True, size=SUPER),
    "Q5_K": Block(8, minimum=True, size=SUPER),
    "Q6_K": Block(8, 16, size=SUPER),
}


def held_together(types: Iterable[str]) -> Block | None:
    """What holds rows of blocks of all these types without rounding any: the larger codes, the smaller groups, and
    minimums where one of them has some. None where a type is not held so, or only some are super-blocks."""
    found = [BLOCKS.get(name) for name in types]
    blocks = [block for block in found if block is not None]
    if not blocks or len(blocks) != len(found) or len({block.size for block in blocks}) > 1:
        return None
    return Block(
        max(block.bits for block in blocks), min(block.group for block in blocks),
        any(block.minimum for block in blocks), blocks[0].size,
    )  # fmt: skip


def stored_blocks(facts: ModelFacts) -> str | None:
    """The type of blocks, such as `Q4_1`, that most of a GGUF's values lie in; None where weights are floats.

    A quantized folder (`facts.quantization`) is held as it is stored, and codes of other bits are refused.
    """
    if facts.quantization is not None:
        return None
    # A vector is never in codes, and an embedding that is does not change what the layers lose.
    coded = [(count, name) for name, count in facts.matrix_values.items() if name not in DTYPE_BYTES]
    return max(coded)[1] if coded else None


def block_bits(facts: ModelFacts) -> Literal[4, 8] | None:
    """Bits of the codes in which most of a GGUF's matrices are held as they are stored; None where kernels do not take
    most of its blocks."""
    block = BLOCKS.get(stored_blocks(facts) or "")
    return None if block is None else block.bits
