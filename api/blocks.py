"""GGUF's blocks that kernels multiply as they are stored. Pure arithmetic on types.

A block is 32 neighbouring values of a row: Q4_0 is (code - 8) * scale, Q4_1 is code * scale + minimum, Q8_0 is code *
scale, with scale and minimum in float16 (ggml's `block_q4_0`, `block_q4_1`, `block_q8_0`).
"""

from collections.abc import Mapping
from typing import Literal

from plimsoll.api.model import DTYPE_BYTES, ModelFacts

#: Values of a block.
BLOCK = 32
#: Bits of a code by the type of block, for those that are held as they are stored.
BLOCK_BITS: Mapping[str, Literal[4, 8]] = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
#: The type whose blocks have a minimum of their own.
WITH_MINIMUM = "Q4_1"


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
    """Bits of the codes in which a GGUF's matrices are held as they are stored; None where kernels do not take most of
    its blocks."""
    blocks = stored_blocks(facts)
    return None if blocks is None else BLOCK_BITS.get(blocks)
