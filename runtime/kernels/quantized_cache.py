"""One layer's keys and values as codes of 8 or 4 bits in paged blocks: what `LayerCache` is for floats."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from plimsoll.api.sizes import PAIR_BYTES

LEAST_SCALE = 2.0**-24
"""Stands for a range of zero: the smallest float16 above 0."""


def head_bytes(bits: int, block_size: int, head_dim: int) -> int:
    """Bytes of a block of one head, of keys or of values: codes, then scales and minimums in float16."""
    return block_size * (head_dim * bits // 8 + PAIR_BYTES)


def spread(x: Tensor) -> Tensor:
    """(x [..., D] float32) -> x turned by the normed Hadamard matrix, in runs of the largest power of 2 that divides D.

    The weight of an outlier is spread over its run, so that codes of 4 bits lose less (QuaRot, arXiv 2404.00456). The
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
    """(x [..., D]) -> codes uint8 [..., D * bits / 8], scales and minimums float16 [...]: x is minimum + code * scale.
    For 4 bits x is `spread` first.

    Scales and minimums are rounded before codes are made, so that codes fit what is read back. A byte of two codes
    holds columns d (low) and d + D / 2 (high). A number that is not finite makes a scale or minimum that is not.
    """
    x, most = spread(x.float()) if bits == 4 else x.float(), 2**bits - 1
    minimums = x.amin(-1).half()
    low = minimums.float().unsqueeze(-1)
    scales = ((x.amax(-1, keepdim=True) - low) / most).clamp(min=LEAST_SCALE).half()
    codes = ((x - low) / scales.float()).clamp(0, most).round().to(torch.uint8)
    if bits == 4:
        lower, upper = codes.chunk(2, dim=-1)
        codes = lower | (upper << 4)
    return codes, scales.squeeze(-1), minimums


def dequantize(codes: Tensor, scales: Tensor, minimums: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """The inverse of `quantize` -> [..., D] in `dtype`, computed in float32."""
    if bits == 4:
        codes = torch.cat((codes & 15, codes >> 4), dim=-1)
    found = codes.float().mul_(scales.unsqueeze(-1)).add_(minimums.unsqueeze(-1))
    return (spread(found) if bits == 4 else found).to(dtype)


@dataclass(frozen=True, slots=True)
class QuantizedCache:
    """Keys and values as codes, each uint8 [blocks, kv_heads, `head_bytes`]: a block's codes [block_size, head_dim *
    bits / 8], its scales [block_size] and its minimums [block_size], one pair a head and token."""

    keys: Tensor
    values: Tensor
    bits: Literal[4, 8]
    block_size: int
    head_dim: int

    @property
    def shape(self) -> torch.Size:
        """(blocks, kv_heads, block_size, head_dim)."""
        return torch.Size((*self.keys.shape[:2], self.block_size, self.head_dim))

    def write(self, k: Tensor, v: Tensor, slot_mapping: Tensor) -> None:
        """Puts row t of k, v [T, G, D] at slot_mapping[t] = block * block_size + offset."""
        block = torch.div(slot_mapping, self.block_size, rounding_mode="floor")
        offset = slot_mapping % self.block_size
        for data, rows in ((self.keys, k), (self.values, v)):
            codes, scales, minimums = self._parts(data)
            codes[block, :, offset], scales[block, :, offset], minimums[block, :, offset] = quantize(rows, self.bits)

    def gather(self, blocks: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(blocks [B, M]) -> keys and values, each [B, G, M * block_size, D] in order."""
        found = []
        for data in (self.keys, self.values):
            codes, scales, minimums = (part.transpose(0, 1)[:, blocks] for part in self._parts(data))
            found.append(dequantize(codes, scales, minimums, self.bits, dtype).transpose(0, 1).flatten(2, 3))
        return found[0], found[1]

    def _parts(self, data: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of the codes [blocks, G, block_size, D * bits / 8], the scales and the minimums [.., block_size]."""
        size = self.block_size
        codes, pairs = data.split((size * self.head_dim * self.bits // 8, size * PAIR_BYTES), dim=-1)
        scales, minimums = pairs.view(torch.float16).split(size, dim=-1)
        return codes.unflatten(-1, (size, -1)), scales, minimums
