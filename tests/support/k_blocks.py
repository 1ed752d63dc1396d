"""Floats as GGUF's super-blocks of 256, which the `gguf` package reads and does not write. Scales are the plain ones of
each group's largest values, not those that llama.cpp searches for."""

from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

SUPER = 256
KINDS = ("Q4_K", "Q5_K", "Q6_K")


def quantize(values: npt.NDArray[np.float32], kind: str) -> npt.NDArray[Any]:
    """float32 [N, K] -> uint8 [N, bytes]; in blocks that are no super-blocks as the `gguf` package does it."""
    if kind not in KINDS:
        return gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    blocks = values.reshape(-1, SUPER)
    packed = _signed(blocks) if kind == "Q6_K" else _with_minimums(blocks, 4 if kind == "Q4_K" else 5)
    return packed.reshape(len(values), -1)


def _halves(values: Any) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(values.astype("<f2")).view(np.uint8)


def _whole(values: Any, unit: Any, most: int) -> Any:
    """Multiples of `unit`, which is of float16 and may be 0."""
    unit = unit.astype(np.float16).astype(np.float32)
    return np.round(np.divide(values, unit, out=np.zeros_like(values), where=unit != 0)).clip(-most - 1, most)


def _with_minimums(blocks: Any, bits: int) -> Any:
    """Of Q4_K, and Q5_K with its fifth bits."""
    groups = blocks.reshape(-1, 8, 32)
    least = np.maximum(0, -groups.min(2))
    scales = (groups.max(2).clip(0) + least) / (2**bits - 1)
    d, dmin = scales.max(1, keepdims=True) / 63, least.max(1, keepdims=True) / 63
    sc, m = _whole(scales, d, 63), _whole(least, dmin, 63)
    d, dmin = (factor.astype(np.float16).astype(np.float32) for factor in (d, dmin))
    codes = _whole(groups + (dmin * m)[:, :, None], (d * sc)[:, :, None].astype(np.float32), 2**bits - 1)
    codes, sc, m = (part.clip(0).astype(np.uint8) for part in (codes, sc, m))
    packed_scales = np.concatenate(
        (
            sc[:, :4] | (sc[:, 4:] >> 4) << 6, m[:, :4] | (m[:, 4:] >> 4) << 6, sc[:, 4:] & 15 | (m[:, 4:] & 15) << 4,
        ), 1,
    )  # fmt: skip
    low = (codes & 15).reshape(-1, 4, 2, 32)
    parts = [_halves(d), _halves(dmin), packed_scales]
    if bits == 5:
        parts.append(np.bitwise_or.reduce((codes >> 4) << np.arange(8, dtype=np.uint8)[:, None], axis=1))
    return np.concatenate((*parts, (low[:, :, 0] | low[:, :, 1] << 4).reshape(-1, 128)), 1)


def _signed(blocks: Any) -> Any:
    """Of Q6_K."""
    groups = blocks.reshape(-1, 16, 16)
    scales = np.abs(groups).max(2) / 31
    d = scales.max(1, keepdims=True) / 127
    sc = _whole(scales, d, 127)
    d = d.astype(np.float16).astype(np.float32)
    codes = _whole(groups, (d * sc)[:, :, None].astype(np.float32), 31)
    codes = (codes + 32).clip(0, 63).astype(np.uint8).reshape(-1, 2, 4, 32)
    low = (codes & 15).reshape(-1, 2, 2, 64)
    high = np.bitwise_or.reduce((codes >> 4) << np.array([[0], [2], [4], [6]], dtype=np.uint8), axis=2)
    return np.concatenate(
        (
            (low[:, :, 0] | low[:, :, 1] << 4).reshape(-1, 128), high.reshape(-1, 64),
            sc.astype(np.int8).view(np.uint8), _halves(d),
        ), 1,
    )  # fmt: skip
