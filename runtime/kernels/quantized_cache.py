"""One layer's keys and values as codes of 8 bits, or of 4 (keys: 6), in blocks: what `LayerCache` is for floats."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from plimsoll.api.precision import KEY_BITS, code_bytes
from plimsoll.api.sizes import PAIR_BYTES

LEAST_SCALE = 2.0**-24
"""Stands for a range of zero: the smallest float16 above 0."""


def head_bytes(bits: int, block_size: int, head_dim: int) -> int:
    """Bytes of one head's keys in a block, with `bits` those of a key's code, or of its values: codes, then scales and
    minimums in float16."""
    return block_size * (code_bytes(bits, head_dim) + PAIR_BYTES)


def block_bytes(bits: int, block_size: int, head_dim: int) -> int:
    """Bytes of a block of one head, keys and values; `bits`: of a value's code."""
    return sum(head_bytes(some, block_size, head_dim) for some in (KEY_BITS[bits], bits))


def spread(x: Tensor) -> Tensor:
    """(x [..., D] float32) -> x turned by the normed Hadamard matrix, in runs of the largest power of 2 that divides D.

    The weight of an outlier is spread over its run, so that codes of few bits lose less (QuaRot, arXiv 2404.00456). The
    matrix is its own inverse.
    """
    run, half = x.shape[-1] & -x.shape[-1], 1
    turned = x
    while half < run:
        first, second = turned.unflatten(-1, (-1, 2, half)).unbind(-2)
        turned = torch.stack((first + second, first - second), dim=-2).flatten(-3)
        half *= 2
    return turned * (1 / torch.tensor(run, dtype=torch.float32).sqrt()).item()


def quantize(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """(x [..., D]) -> codes uint8 [..., `code_bytes`], scales and minimums float16 [...]: x is minimum + code * scale.
    For 4 and 6 bits x is `spread` first.

    Scales and minimums are rounded before codes are made, so that codes fit what is read back. A byte of two codes
    holds columns d (low) and d + D / 2 (high); the upper two bits follow, column d in byte d % P at place 2 (d // P),
    where P is D / 4 rounded up. A number that is not finite makes a scale or minimum that is not.
    """
    x, most = x.float() if bits == 8 else spread(x.float()), 2**bits - 1
    minimums = x.amin(-1).half()
    low = minimums.float().unsqueeze(-1)
    scales = ((x.amax(-1, keepdim=True) - low) / most).clamp(min=LEAST_SCALE).half()
    codes = ((x - low) / scales.float()).clamp(0, most).round().to(torch.uint8)
    if bits < 8:
        lower, upper = (codes & 15).chunk(2, dim=-1)
        parts = [lower | (upper << 4)]
        if bits == 6:
            padded = torch.nn.functional.pad(codes >> 4, (0, -codes.shape[-1] % 4)).unflatten(-1, (4, -1))
            parts.append((padded << _places(codes)).sum(-2, dtype=torch.uint8))
        codes = torch.cat(parts, dim=-1)
    return codes, scales.squeeze(-1), minimums


def dequantize(codes: Tensor, scales: Tensor, minimums: Tensor, bits: int, head_dim: int, dtype: torch.dtype) -> Tensor:
    """The inverse of `quantize` -> [..., D] in `dtype`, computed in float32."""
    if bits < 8:
        pairs, upper = codes.split((head_dim // 2, codes.shape[-1] - head_dim // 2), dim=-1)
        codes = torch.cat((pairs & 15, pairs >> 4), dim=-1)
        if bits == 6:
            places = (upper.unsqueeze(-2) >> _places(codes)) & 3
            codes = codes | (places.flatten(-2)[..., :head_dim] << 4)
    found = codes.float().mul_(scales.unsqueeze(-1)).add_(minimums.unsqueeze(-1))
    return (found if bits == 8 else spread(found)).to(dtype)


def _places(beside: Tensor) -> Tensor:
    return torch.arange(0, 8, 2, dtype=torch.uint8, device=beside.device).unsqueeze(-1)


@dataclass(frozen=True, slots=True)
class QuantizedCache:
    """Keys and values as codes: `data` uint8 [blocks, kv_heads, `block_bytes`]. Of a block of one head first the keys
    lie there, then the values: codes [block_size, `code_bytes`], scales [block_size] and minimums [block_size], one
    pair a head and token."""

    data: Tensor
    bits: Literal[4, 8]
    """Of a value's code; a key's has `KEY_BITS`."""
    block_size: int
    head_dim: int

    @property
    def shape(self) -> torch.Size:
        """(blocks, kv_heads, block_size, head_dim)."""
        return torch.Size((*self.data.shape[:2], self.block_size, self.head_dim))

    def write(self, k: Tensor, v: Tensor, slot_mapping: Tensor) -> None:
        """Puts row t of k, v [T, G, D] at slot_mapping[t] = block * block_size + offset."""
        block = torch.div(slot_mapping, self.block_size, rounding_mode="floor")
        offset = slot_mapping % self.block_size
        for (bits, data), rows in zip(self._both(), (k, v), strict=True):
            codes, scales, minimums = self._parts(bits, data)
            codes[block, :, offset], scales[block, :, offset], minimums[block, :, offset] = quantize(rows, bits)

    def gather(self, blocks: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(blocks [B, M]) -> keys and values, each [B, G, M * block_size, D] in order."""
        found = []
        for bits, data in self._both():
            codes, scales, minimums = (part.transpose(0, 1)[:, blocks] for part in self._parts(bits, data))
            rows = dequantize(codes, scales, minimums, bits, self.head_dim, dtype)
            found.append(rows.transpose(0, 1).flatten(2, 3))
        return found[0], found[1]

    def _both(self) -> tuple[tuple[int, Tensor], tuple[int, Tensor]]:
        """Bits and bytes [blocks, G, `head_bytes`] of keys, and of values."""
        bits = KEY_BITS[self.bits]
        at = head_bytes(bits, self.block_size, self.head_dim)
        return (bits, self.data[..., :at]), (self.bits, self.data[..., at:])

    def _parts(self, bits: int, data: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of the codes [blocks, G, block_size, `code_bytes`], the scales and the minimums [.., block_size]."""
        size = self.block_size
        codes, pairs = data.split((size * code_bytes(bits, self.head_dim), size * PAIR_BYTES), dim=-1)
        scales, minimums = pairs.view(torch.float16).split(size, dim=-1)
        return codes.unflatten(-1, (size, -1)), scales, minimums
