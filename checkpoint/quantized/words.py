"""Codes of 4 and 8 bits in 32-bit words, the first in the lowest bits: what all three formats have in common."""

from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.int32]
Codes = npt.NDArray[np.uint8]


def pack(codes: Codes, bits: int) -> Words:
    """uint8 [R, C] -> int32 [R, C * bits / 32], C a multiple of the codes in a word."""
    if bits == 4:
        codes = codes[:, 0::2] | (codes[:, 1::2] << np.uint8(4))
    return np.ascontiguousarray(codes).view("<i4").astype(np.int32, copy=False)


def unpack(words: npt.NDArray[Any], bits: int) -> Codes:
    """int32 [R, W] -> uint8 [R, W * 32 / bits]."""
    packed = np.ascontiguousarray(words, dtype="<i4").view(np.uint8)
    if bits == 8:
        return packed
    codes = np.empty((packed.shape[0], packed.shape[1] * 2), dtype=np.uint8)
    np.bitwise_and(packed, 15, out=codes[:, 0::2])
    np.right_shift(packed, 4, out=codes[:, 1::2])
    return codes


def padded(codes: Codes, bits: int) -> Codes:
    """`codes` with columns of zeros up to whole words."""
    short = -codes.shape[1] % (32 // bits)
    return np.pad(codes, ((0, 0), (0, short))) if short else codes
