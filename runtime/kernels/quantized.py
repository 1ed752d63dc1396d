"""Quantized matrices as a checkpoint gives them, and what they stand for: w = (code - zero) * scale, or, of GGUF's
blocks with a minimum, w = code * scale + minimum.

Groups of K/G neighbouring columns of a row share one scale and one zero point or minimum. Codes of 4 bits are unsigned,
0 to 15; codes of 8 bits are signed and symmetric.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

MIDDLE = 8
"""Zero point of 4-bit codes that come without one."""
GROUP_MULTIPLE = 8
"""4-bit groups are whole words of eight codes, as every format stores them."""
SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A linear's weight [N, K], one code a byte. G groups a row; G is 1 where a row has one scale.

    Raises ValueError where shapes or dtypes do not fit each other.
    """

    bits: Literal[4, 8]
    codes: Tensor
    """[N, K]: uint8 of 0..15 for 4 bits, int8 for 8."""
    scales: Tensor
    """[N, G] float16, bfloat16 or float32, as stored."""
    zeros: Tensor | None = None
    """uint8 [N, G] of 0..15; None is symmetric: 8 for 4 bits, always for 8."""
    minimums: Tensor | None = None
    """float16 [N, G] in place of zero points: what code 0 of a group stands for. Scales are float16 too."""

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ValueError(f"codes have 4 or 8 bits, not {self.bits}")
        if self.codes.dim() != 2 or self.codes.dtype != (torch.uint8 if self.bits == 4 else torch.int8):
            raise ValueError(
                f"{self.bits}-bit codes cannot be {self.codes.dtype} of shape {tuple(self.codes.shape)}: they are "
                f"{'uint8' if self.bits == 4 else 'int8'} [N, K]"
            )
        rows, columns = self.codes.shape
        if self.scales.dim() != 2 or len(self.scales) != rows or self.scales.dtype not in SCALE_DTYPES:
            raise ValueError(f"scales are {self.scales.dtype} {tuple(self.scales.shape)}, for codes {rows, columns}")
        groups = self.scales.shape[1]
        if not rows or not columns or not groups or columns % groups:
            raise ValueError(f"{columns} columns of {rows} rows do not divide into {groups} groups")
        if self.bits == 4 and self.group_size % GROUP_MULTIPLE:
            raise ValueError(f"a group of 4-bit codes is a multiple of {GROUP_MULTIPLE} columns, not {self.group_size}")
        if self.zeros is not None:
            if self.bits == 8:
                raise ValueError("8-bit codes are symmetric: they have no zero points")
            if self.zeros.dtype != torch.uint8 or self.zeros.shape != self.scales.shape:
                raise ValueError(f"zero points are {self.zeros.dtype} {tuple(self.zeros.shape)}, not uint8 as scales")
        if (least := self.minimums) is not None:
            if self.bits == 8 or self.zeros is not None or self.scales.dtype != torch.float16:
                raise ValueError("minimums are for 4-bit codes with float16 scales and without zero points")
            if least.dtype != torch.float16 or least.shape != self.scales.shape:
                raise ValueError(f"minimums are {least.dtype} {tuple(least.shape)}, not float16 as scales")

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return int(self.codes.shape[1]) // int(self.scales.shape[1])

    def rows(self, start: int, stop: int) -> "QuantizedMatrix":
        """Rows [start, stop), as views."""
        zeros, least = (None if part is None else part[start:stop] for part in (self.zeros, self.minimums))
        return QuantizedMatrix(self.bits, self.codes[start:stop], self.scales[start:stop], zeros, least)


def dequantize(matrix: QuantizedMatrix, dtype: torch.dtype) -> Tensor:
    """[N, K] in `dtype`: (code - zero) * scale, in float32 (exact for 16-bit scales) and rounded once; code * scale +
    minimum in float32, as GGUF defines it."""
    values = matrix.codes.unflatten(1, (matrix.scales.shape[1], -1)).float()
    scales = matrix.scales.float().unsqueeze(2)
    if matrix.minimums is not None:
        return (values * scales + matrix.minimums.float().unsqueeze(2)).flatten(1).to(dtype)
    middle = MIDDLE if matrix.bits == 4 else 0
    zeros = middle if matrix.zeros is None else matrix.zeros.float().unsqueeze(2)
    return ((values - zeros) * scales).flatten(1).to(dtype)


@dataclass(frozen=True, slots=True)
class TorchQuantized:
    """The plain table's Weight: 4-bit codes two a byte, the even column low. 8-bit scales are float32."""

    bits: Literal[4, 8]
    codes: Tensor
    """uint8 [N, K/2] for 4 bits, int8 [N, K] for 8."""
    scales: Tensor
    """[N, G]."""
    zeros: Tensor | None
    """uint8 [N, G] for 4 bits, but where there are minimums."""
    minimums: Tensor | None = None
    """float16 [N, G]."""

    @property
    def nbytes(self) -> int:
        parts = (self.codes, self.scales, self.zeros, self.minimums)
        return sum(part.nbytes for part in parts if part is not None)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.codes), int(self.codes.shape[1]) * (2 if self.bits == 4 else 1)

    def picked(self, ids: Tensor) -> QuantizedMatrix:
        """Rows `ids` int64 [T], of 8 bits. Raises ValueError for 4 bits, and where there is none."""
        if self.bits != 8:
            raise ValueError("an embedding is whole or of 8 bits")
        return QuantizedMatrix(8, self.codes[ids], self.scales[ids])

    def rows(self, start: int, stop: int) -> QuantizedMatrix:
        """Rows [start, stop), one code a byte."""
        codes, scales = self.codes[start:stop], self.scales[start:stop]
        if self.bits == 8:
            return QuantizedMatrix(8, codes, scales)
        codes = torch.stack((codes & 15, codes >> 4), dim=2).flatten(1)
        zeros, least = (None if part is None else part[start:stop] for part in (self.zeros, self.minimums))
        return QuantizedMatrix(4, codes, scales, zeros, least)


def pack_torch(matrix: QuantizedMatrix, device: torch.device | str) -> TorchQuantized:
    """N * (K/2 + 3 G) bytes for 4 bits with 16-bit scales, 4 G with minimums; N * (K + 4 G) for 8. Raises ValueError
    for a code > 15."""
    if matrix.bits == 8:
        return TorchQuantized(8, matrix.codes.to(device).contiguous(), matrix.scales.to(device).float(), None)
    check_codes(matrix)
    packed = (matrix.codes[:, 0::2] | (matrix.codes[:, 1::2] << 4)).to(device)
    scales = matrix.scales.to(device).contiguous()
    if matrix.minimums is not None:
        return TorchQuantized(4, packed, scales, None, matrix.minimums.to(device).contiguous())
    zeros = torch.full(matrix.scales.shape, MIDDLE, dtype=torch.uint8) if matrix.zeros is None else matrix.zeros
    return TorchQuantized(4, packed, scales, zeros.to(device).contiguous())


def check_codes(matrix: QuantizedMatrix) -> None:
    """Raises ValueError where a 4-bit code or zero point is above 15: packed, it would spill into its neighbour."""
    parts = (("code", matrix.codes), ("zero point", matrix.zeros))
    for name, values in parts:
        if matrix.bits == 4 and values is not None and int(values.max()) > 15:
            raise ValueError(f"a 4-bit {name} is 0 to 15, found {int(values.max())}")
