"""Quantized matrices as a checkpoint gives them, and what they stand for: w = (code - zero) * scale.

Groups of K/G neighbouring columns of a row share one scale and one zero point. Codes of 4 bits are unsigned, 0 to 15;
codes of 8 bits are signed and symmetric.
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

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return int(self.codes.shape[1]) // int(self.scales.shape[1])

    def rows(self, start: int, stop: int) -> "QuantizedMatrix":
        """Rows [start, stop), as views."""
        zeros = None if self.zeros is None else self.zeros[start:stop]
        return QuantizedMatrix(self.bits, self.codes[start:stop], self.scales[start:stop], zeros)


def dequantize(matrix: QuantizedMatrix, dtype: torch.dtype) -> Tensor:
    """[N, K] in `dtype`: (code - zero) * scale, in float32 (exact for 16-bit scales) and rounded once."""
    middle = MIDDLE if matrix.bits == 4 else 0
    zeros = middle if matrix.zeros is None else matrix.zeros.float().unsqueeze(2)
    values = matrix.codes.unflatten(1, (matrix.scales.shape[1], -1)).float()
    return ((values - zeros) * matrix.scales.float().unsqueeze(2)).flatten(1).to(dtype)


@dataclass(frozen=True, slots=True)
class TorchQuantized:
    """The plain table's Weight: 4-bit codes two a byte, the even column low. 8-bit scales are float32."""

    bits: Literal[4, 8]
    codes: Tensor
    """uint8 [N, K/2] for 4 bits, int8 [N, K] for 8."""
    scales: Tensor
    """[N, G]."""
    zeros: Tensor | None
    """uint8 [N, G] for 4 bits."""

    @property
    def nbytes(self) -> int:
        return int(self.codes.nbytes + self.scales.nbytes + (0 if self.zeros is None else self.zeros.nbytes))

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
        if self.bits == 8 or self.zeros is None:
            return QuantizedMatrix(self.bits, codes, scales)
        codes = torch.stack((codes & 15, codes >> 4), dim=2).flatten(1)
        return QuantizedMatrix(self.bits, codes, scales, self.zeros[start:stop])


def pack_torch(matrix: QuantizedMatrix, device: torch.device | str) -> TorchQuantized:
    """N * (K/2 + 3 G) bytes for 4 bits with 16-bit scales, N * (K + 4 G) for 8. Raises ValueError for a code > 15."""
    if matrix.bits == 8:
        return TorchQuantized(8, matrix.codes.to(device).contiguous(), matrix.scales.to(device).float(), None)
    zeros = torch.full(matrix.scales.shape, MIDDLE, dtype=torch.uint8) if matrix.zeros is None else matrix.zeros
    check_codes(matrix)
    packed = matrix.codes[:, 0::2] | (matrix.codes[:, 1::2] << 4)
    return TorchQuantized(4, packed.to(device), matrix.scales.to(device).contiguous(), zeros.to(device).contiguous())


def check_codes(matrix: QuantizedMatrix) -> None:
    """Raises ValueError where a 4-bit code or zero point is above 15: packed, it would spill into its neighbour."""
    parts = (("code", matrix.codes), ("zero point", matrix.zeros))
    for name, values in parts:
        if matrix.bits == 4 and values is not None and int(values.max()) > 15:
            raise ValueError(f"a 4-bit {name} is 0 to 15, found {int(values.max())}")
