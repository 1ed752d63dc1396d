"""GGUF's blocks of one scale as codes, scales and minimums: ggml's `block_q4_0`, `block_q4_1` and `block_q8_0`.

Each is a float16 scale, of Q4_1 a float16 minimum, and the codes of 32 neighbouring values. Of two codes of 4 bits in a
byte the lower half is a value of the block's first 16, the upper half of its last.
"""

import numpy as np
import numpy.typing as npt

from plimsoll.api.blocks import BLOCK, BLOCK_BITS, WITH_MINIMUM
from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.quantized.linear import QuantizedLinear


def unpack(packed: npt.NDArray[np.uint8], type_name: str, where: str) -> QuantizedLinear:
    """What blocks of `type_name`, one of `BLOCK_BITS`, hold.

    Args:
        packed: uint8 [N, bytes], whole blocks.
        where: the tensor, for the error.

    Raises:
        CheckpointError: a scale or minimum is infinite or no number.
    """
    bits, heads = BLOCK_BITS[type_name], 2 if type_name == WITH_MINIMUM else 1
    rows, size = len(packed), 2 * heads + BLOCK * bits // 8
    blocks = packed.reshape(rows, packed.shape[1] // size, size)
    head = np.ascontiguousarray(blocks[:, :, : 2 * heads]).view("<f2")
    if not np.isfinite(head).all():
        raise CheckpointError(
            "a block has a scale or minimum that is no number", field=where, value=type_name,
            fix="Download the file again",
        )  # fmt: skip
    stored = blocks[:, :, 2 * heads :]
    codes = stored.view(np.int8) if bits == 8 else np.concatenate((stored & 15, stored >> 4), axis=2)
    least = np.ascontiguousarray(head[:, :, 1]) if heads == 2 else None
    scales = head[:, :, 0].astype(np.float32)
    return QuantizedLinear(
        np.ascontiguousarray(codes.reshape(rows, blocks.shape[1] * BLOCK)), scales, None, "F16", least
    )
