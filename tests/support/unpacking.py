"""The three quantized formats read value by value, from their descriptions alone: slow, and nothing of ours in it.

A word is a 32-bit integer; field i of b bits is (word >> b * i) & (2^b - 1). Every function gives, for one output
feature n and input feature k, the code, the zero point and the scale.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

Triple = tuple[int, int, float]

#: AutoAWQ writes eight neighbouring output features into a word in this order, lowest bits first.
AWQ_FIELDS = [0, 2, 4, 6, 1, 3, 5, 7]


def _field(words: Any, row: int, column: int, index: int, bits: int) -> int:
    word = int(words[row][column]) % (1 << 32)
    return (word >> (bits * index)) % (1 << bits)


def awq(tensors: Mapping[str, Any], n: int, k: int, group: int) -> Triple:
    """qweight [K, N/8], qzeros [K/g, N/8], scales [K/g, N]."""
    index = AWQ_FIELDS.index(n % 8)
    code = _field(tensors["qweight"], k, n // 8, index, 4)
    zero = _field(tensors["qzeros"], k // group, n // 8, index, 4)
    return code, zero, float(tensors["scales"][k // group][n])


def compressed(tensors: Mapping[str, Any], n: int, k: int, group: int, bits: int) -> Triple:
    """weight_packed [N, K*b/32] and weight_zero_point [N/8, K/g] hold signed values with 2^(b-1) added."""
    per_word, middle = 32 // bits, 1 << (bits - 1)
    assert list(tensors["weight_shape"]) == [len(tensors["weight_packed"]), len(tensors["weight_packed"][0]) * per_word]
    code = _field(tensors["weight_packed"], n, k // per_word, k % per_word, bits) - middle
    zero = 0
    if "weight_zero_point" in tensors:
        zero = _field(tensors["weight_zero_point"], n // per_word, k // group, n % per_word, bits) - middle
    return code, zero, float(tensors["weight_scale"][n][k // group])


def gptq(tensors: Mapping[str, Any], n: int, k: int, bits: int, stored_less: int) -> Triple:
    """qweight [K*b/32, N], qzeros [K/g, N*b/32], scales [K/g, N], g_idx [K]; `stored_less` is 1 in the first layout."""
    per_word, group = 32 // bits, int(tensors["g_idx"][k])
    code = _field(tensors["qweight"], k // per_word, n, k % per_word, bits)
    zero = _field(tensors["qzeros"], group, n // per_word, n % per_word, bits)
    return code, (zero + stored_less) % (1 << bits), float(tensors["scales"][group][n])


def weight(triple: Triple) -> np.float32:
    code, zero, scale = triple
    return np.float32(code - zero) * np.float32(scale)
