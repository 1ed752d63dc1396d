"""GGUF's blocks as codes, scales and minimums: ggml's `block_q4_0` to `block_q8_0` and `block_q4_K` to `block_q6_K`.

https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h. A block of 32 is a float16 scale, in Q4_1 and Q5_1 a
float16 minimum, in Q5_0 and Q5_1 the fifth bits of all codes, and the codes: of two codes in a byte the lower half is a
value of the block's first 16, the upper half of its last. A super-block of 256 is described at its function.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from plimsoll.api.blocks import BLOCK, BLOCKS, SUPER, Block
from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.quantized.linear import QuantizedLinear

Bytes = npt.NDArray[np.uint8]


def unpack(packed: Bytes, type_name: str, where: str) -> QuantizedLinear:
    """What blocks of `type_name`, one of `BLOCKS`, hold.

    Args:
        packed: uint8 [N, bytes], whole blocks.
        where: the tensor, for the error.

    Raises:
        CheckpointError: a scale or minimum is infinite or no number.
    """
    block = BLOCKS[type_name]
    if block.size == SUPER:
        found = _SUPER_BLOCKS[type_name](packed)
        factors = [part for part in (found.super_scales, found.super_minimums) if part is not None]
    else:
        found = _blocks(packed, block, five=type_name.startswith("Q5"))
        factors = [part for part in (found.scales, found.minimums) if part is not None]
    if not all(np.isfinite(part).all() for part in factors):
        raise CheckpointError(
            "a block has a scale or minimum that is no number", field=where, value=type_name,
            fix="Download the file again",
        )  # fmt: skip
    return found


def _blocks(packed: Bytes, block: Block, five: bool) -> QuantizedLinear:
    """Of 32 values. Args: five: codes have 5 bits."""
    halves, high = 2 if block.minimum else 1, 4 if five else 0
    stored = BLOCK if block.bits == 8 and not five else BLOCK // 2
    parts = _parts(packed, 2 * halves + high + stored)
    head = np.ascontiguousarray(parts[:, :, : 2 * halves]).view("<f2")
    codes: npt.NDArray[Any] = parts[:, :, 2 * halves + high :]
    if stored < BLOCK:
        codes = np.concatenate((codes & 15, codes >> 4), axis=2)
    if five:
        bits = np.unpackbits(np.ascontiguousarray(parts[:, :, 2 * halves : 2 * halves + 4]), axis=2, bitorder="little")
        codes = codes | bits << 4
        codes = codes if block.minimum else codes - np.uint8(16)
    return QuantizedLinear(
        _rows(codes if block.bits == 4 else codes.view(np.int8)), head[:, :, 0].astype(np.float32), None, "F16",
        np.ascontiguousarray(head[:, :, 1]) if block.minimum else None,
    )  # fmt: skip


def _q4_k(packed: Bytes) -> QuantizedLinear:
    """float16 d and dmin, 12 bytes of scales and minimums, 128 bytes of codes: in each 32 bytes the lower halves are
    one group of 32, the upper halves the next."""
    parts = _parts(packed, 144)
    return _with_minimums(parts, _nibbles(parts[:, :, 16:]))


def _q5_k(packed: Bytes) -> QuantizedLinear:
    """As Q4_K, with 32 bytes before the codes: bit g of byte i is the fifth bit of value i of group g."""
    parts = _parts(packed, 176)
    high = parts[:, :, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return _with_minimums(parts, (_nibbles(parts[:, :, 48:]) | high << 4).view(np.int8))


def _q6_k(packed: Bytes) -> QuantizedLinear:
    """128 bytes of lower halves, 64 of upper two bits, 16 scales of int8 and float16 d; codes have 32 added. Each half
    of the block has 64 bytes of lower halves: of its four groups of 32 the first two are the lower halves of these
    bytes, the others the upper ones; bits 2g and 2g + 1 of its 32 other bytes belong to group g."""
    parts = _parts(packed, 210)
    lead = parts.shape[:2]
    low = parts[:, :, :128].reshape(*lead, 2, 1, 64) >> np.array([[0], [4]], dtype=np.uint8) & 15
    high = parts[:, :, 128:192].reshape(*lead, 2, 1, 32) >> np.array([[0], [2], [4], [6]], dtype=np.uint8) & 3
    codes = low.reshape(*lead, 2, 4, 32) | high << 4
    scales = _rows(parts[:, :, 192:208]).view(np.int8)
    return QuantizedLinear(
        _rows((codes - np.uint8(32)).view(np.int8)), scales, super_scales=_halves(parts[:, :, 208:])[:, :, 0]
    )


def _with_minimums(parts: Bytes, codes: npt.NDArray[Any]) -> QuantizedLinear:
    """Of Q4_K and Q5_K. dmin * minimum is subtracted: its sign is turned here."""
    factors = _halves(parts[:, :, :4])
    first, second, rest = (parts[:, :, start : start + 4] for start in (4, 8, 12))
    scales = np.concatenate((first & 63, rest & 15 | first >> 2 & 48), axis=2)
    least = np.concatenate((second & 63, rest >> 4 | second >> 2 & 48), axis=2)
    return QuantizedLinear(
        _rows(codes), _rows(scales).view(np.int8), None, "F16", _rows(least).view(np.int8),
        np.ascontiguousarray(factors[:, :, 0]), -factors[:, :, 1],
    )  # fmt: skip


def _nibbles(stored: Bytes) -> Bytes:
    """uint8 [N, blocks, 128] -> [N, blocks, 8, 32]."""
    pairs: npt.NDArray[Any] = stored.reshape(*stored.shape[:2], 4, 1, 32) >> np.array([[0], [4]], dtype=np.uint8) & 15
    return pairs.reshape(*stored.shape[:2], 8, 32)


def _halves(stored: Bytes) -> npt.NDArray[np.float16]:
    return np.ascontiguousarray(stored).view("<f2")


def _parts(packed: Bytes, size: int) -> Bytes:
    """uint8 [N, blocks, size]."""
    return packed.reshape(len(packed), packed.shape[1] // size, size)


def _rows(parts: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """All that belongs to a row, one after another; there may be no rows."""
    return np.ascontiguousarray(parts.reshape(len(parts), math.prod(parts.shape[1:])))


_SUPER_BLOCKS: Mapping[str, Callable[[Bytes], QuantizedLinear]] = {"Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}
