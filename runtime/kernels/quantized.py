"""Quantized matrices as a checkpoint gives them, and what they stand for: w = (code - zero) * scale, or, of GGUF's
blocks with a minimum, w = code * scale + minimum.

Groups of K/G neighbouring columns of a row share one scale and one zero point or minimum. Codes of 4 bits are unsigned,
0 to 15; codes of 8 bits are signed, and symmetric where there are no minimums. In GGUF's super-blocks scales and
minimums are whole numbers of a byte, which two float16 of each 256 columns multiply.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

MIDDLE = 8
"""Zero point of 4-bit codes that come without one."""
GROUP_MULTIPLE = 8
"""4-bit groups are whole words of eight codes, as every format stores them."""
SUPER = 256
"""Columns of a super-block."""
PIECE = 32
"""Columns of a group that share a scale of a row's codes (`csrc/int8.h`)."""
LEAST = 2.0**-100
"""Below it the largest number of a piece counts as 0."""
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
    """[N, G] float16, bfloat16 or float32, as stored; int8 in super-blocks."""
    zeros: Tensor | None = None
    """uint8 [N, G] of 0..15; None is symmetric: 8 for 4 bits, always for 8."""
    minimums: Tensor | None = None
    """[N, G] in place of zero points: what code 0 of a group stands for. float16, as scales are, or int8 in
    super-blocks."""
    super_scales: Tensor | None = None
    """float16 [N, K / 256]: what the scales of a super-block are multiplied by."""
    super_minimums: Tensor | None = None
    """float16 [N, K / 256]: the same of minimums, where there are minimums."""

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ValueError(f"codes have 4 or 8 bits, not {self.bits}")
        if self.codes.dim() != 2 or self.codes.dtype != (torch.uint8 if self.bits == 4 else torch.int8):
            raise ValueError(
                f"{self.bits}-bit codes cannot be {self.codes.dtype} of shape {tuple(self.codes.shape)}: they are "
                f"{'uint8' if self.bits == 4 else 'int8'} [N, K]"
            )
        rows, columns = self.codes.shape
        known = SCALE_DTYPES if self.super_scales is None else (torch.int8,)
        if self.scales.dim() != 2 or len(self.scales) != rows or self.scales.dtype not in known:
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
            if self.zeros is not None or self.scales.dtype not in (torch.float16, torch.int8):
                raise ValueError("minimums are for float16 scales, or those of super-blocks, without zero points")
            if least.dtype != self.scales.dtype or least.shape != self.scales.shape:
                raise ValueError(f"minimums are {least.dtype} {tuple(least.shape)}, not {self.scales.dtype} as scales")
        self._check_super_blocks()

    def _check_super_blocks(self) -> None:
        if self.super_scales is None:
            if self.super_minimums is not None:
                raise ValueError("super-blocks have scales")
            return
        rows, columns = self.codes.shape
        if self.zeros is not None or (self.minimums is None) != (self.super_minimums is None):
            raise ValueError("a super-block has no zero points, and minimums in each group or in none")
        if columns % SUPER or SUPER % self.group_size:
            raise ValueError(f"{columns} columns in groups of {self.group_size} are no super-blocks of {SUPER}")
        for part in (self.super_scales, self.super_minimums):
            if part is not None and (part.dtype != torch.float16 or part.shape != (rows, columns // SUPER)):
                raise ValueError(f"factors of super-blocks are {part.dtype} {tuple(part.shape)}, not one a block")

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return int(self.codes.shape[1]) // int(self.scales.shape[1])

    def rows(self, start: int, stop: int) -> "QuantizedMatrix":
        """Rows [start, stop), as views."""
        return _each(self, lambda part: part[start:stop])

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Each tensor there is, by its field."""
        yield from _tensors(self)


_Held = TypeVar("_Held", "QuantizedMatrix", "TorchQuantized")


def _each(held: _Held, change: Callable[[Tensor], Tensor]) -> _Held:
    changed: dict[str, Any] = {name: change(part) for name, part in _tensors(held)}
    return replace(held, **changed)


def _tensors(held: "QuantizedMatrix | TorchQuantized") -> Iterator[tuple[str, Tensor]]:
    for field in fields(held):
        part = getattr(held, field.name)
        if isinstance(part, Tensor):
            yield field.name, part


def _of_groups(values: Tensor, factors: Tensor | None) -> Tensor:
    """Scales or minimums as float32 [N, G, 1]: exact, also where `factors` of super-blocks multiply them."""
    wide = values.float()
    if factors is not None:
        wide = wide * factors.float().repeat_interleave(values.shape[1] // factors.shape[1], dim=1)
    return wide.unsqueeze(2)


def dequantize(matrix: QuantizedMatrix, dtype: torch.dtype) -> Tensor:
    """[N, K] in `dtype`: (code - zero) * scale, in float32 (exact for 16-bit scales) and rounded once; code * scale +
    minimum in float32, as GGUF defines it."""
    values = matrix.codes.unflatten(1, (matrix.scales.shape[1], -1)).float()
    scales = _of_groups(matrix.scales, matrix.super_scales)
    if matrix.minimums is not None:
        return (values * scales + _of_groups(matrix.minimums, matrix.super_minimums)).flatten(1).to(dtype)
    middle = MIDDLE if matrix.bits == 4 else 0
    zeros = middle if matrix.zeros is None else matrix.zeros.float().unsqueeze(2)
    return ((values - zeros) * scales).flatten(1).to(dtype)


@dataclass(frozen=True, slots=True)
class TorchQuantized:
    """The plain table's Weight: 4-bit codes two a byte, the even column low. 8-bit scales are float32, except beside
    minimums and in super-blocks."""

    bits: Literal[4, 8]
    codes: Tensor
    """uint8 [N, K/2] for 4 bits, int8 [N, K] for 8."""
    scales: Tensor
    """[N, G]."""
    zeros: Tensor | None
    """uint8 [N, G] for 4 bits, but where there are minimums or super-blocks."""
    minimums: Tensor | None = None
    """[N, G], as `QuantizedMatrix` has them."""
    super_scales: Tensor | None = None
    super_minimums: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for _, part in _tensors(self))

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.codes), int(self.codes.shape[1]) * (2 if self.bits == 4 else 1)

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return self.shape[1] // int(self.scales.shape[1])

    def picked(self, ids: Tensor) -> QuantizedMatrix:
        """Rows `ids` int64 [T]. Raises IndexError where there is none."""
        return self._whole(lambda part: part[ids])

    def rows(self, start: int, stop: int) -> QuantizedMatrix:
        """Rows [start, stop), one code a byte."""
        return self._whole(lambda part: part[start:stop])

    def _whole(self, change: Callable[[Tensor], Tensor]) -> QuantizedMatrix:
        some = _each(self, change)
        codes = some.codes if self.bits == 8 else torch.stack((some.codes & 15, some.codes >> 4), dim=2).flatten(1)
        return QuantizedMatrix(
            self.bits, codes, some.scales, some.zeros, some.minimums, some.super_scales, some.super_minimums
        )


def pack_torch(matrix: QuantizedMatrix, device: torch.device | str) -> TorchQuantized:
    """As many bytes as `Kernels.pack_quantized` says, rows not padded. Raises ValueError for a code > 15."""
    check_codes(matrix)
    codes, scales, zeros = matrix.codes, matrix.scales, matrix.zeros
    if matrix.bits == 4:
        codes = codes[:, 0::2] | (codes[:, 1::2] << 4)
        if matrix.minimums is None and matrix.super_scales is None and zeros is None:
            zeros = torch.full(scales.shape, MIDDLE, dtype=torch.uint8)
    elif matrix.minimums is None and matrix.super_scales is None:
        scales = scales.float()
    packed = TorchQuantized(
        matrix.bits, codes, scales, zeros, matrix.minimums, matrix.super_scales, matrix.super_minimums
    )
    return _each(packed, lambda part: part.to(device).contiguous())


def check_codes(matrix: QuantizedMatrix) -> None:
    """Raises ValueError where a 4-bit code or zero point is above 15: packed, it would spill into its neighbour."""
    parts = (("code", matrix.codes), ("zero point", matrix.zeros))
    for name, values in parts:
        if matrix.bits == 4 and values is not None and int(values.max()) > 15:
            raise ValueError(f"a 4-bit {name} is 0 to 15, found {int(values.max())}")


def quantized_rows(x: Tensor, group: int) -> Tensor:
    """(x [T, K]) -> what rows stand for once they are quantized to 8 bits, in x's dtype: -127 to 127 times a scale for
    each row and each `PIECE` columns of a group of `group`, the nearest code, ties to even.

    A piece with a number that is not finite becomes NaN, and no other does.
    """
    pieces = [piece for part in x.float().split(group, 1) for piece in part.split(PIECE, 1)]
    return torch.cat([_quantized_piece(piece) for piece in pieces], 1).to(x.dtype)


def _quantized_piece(x: Tensor) -> Tensor:
    largest = x.abs().amax(1, keepdim=True)
    # Tensors are divided by tensors: torch may multiply by a reciprocal in place of a number.
    most = torch.full_like(largest, 127)
    codes = (x * (most / largest)).round_() * (largest / most)
    codes = codes.masked_fill_(largest < LEAST, 0)
    return codes.masked_fill_(~torch.isfinite(largest), torch.nan)
