"""Weights of 4 and 8 bits in the native table: they lie and are multiplied as `csrc/quant.h` and `gemm_quant.c` say."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plimsoll.runtime.kernels.native_checks import answered
from plimsoll.runtime.kernels.quantized import SUPER, QuantizedMatrix, check_codes
from plimsoll.runtime.machine.large_pages import room

SCALE_KINDS = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}
WITH_MINIMUM, IN_SUPERS, IN_SUPERS_WITH_MINIMUM = 3, 4, 5
"""The kinds of float16 scales that have float16 minimums beside them, and of scales of super-blocks."""
EXACT_BYTES = 4 * 1024 * 1024
"""Of rows and sums that an exact product holds at once."""


@dataclass(frozen=True, slots=True)
class PackedQuantized:
    """[N, K] in panels of outputs, the last one filled with zeros; codes, scales and zeros of a group together."""

    data: Tensor
    bits: int
    scale_kind: int
    rows: int
    columns: int
    group: int
    address: int

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def unpack_rows(self, library: Any, start: int, stop: int) -> Tensor:
        """Rows [start, stop) as bfloat16, rounded to nearest even. `start` is a multiple of the panel."""
        out = torch.empty(stop - start, self.columns, dtype=torch.bfloat16)
        first = self.address + start * row_bytes(self.bits, self.scale_kind, self.columns, self.group)
        library.unpack_quant(
            self.bits, self.scale_kind, first, out.data_ptr(), stop - start, self.columns, self.group
        )  # fmt: skip
        return out


class _Rows(ctypes.Structure):
    """As `csrc/pack_quant.c` takes a matrix."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("codes", "scales", "zeros", "super_scales", "super_minimums")]


PACK_SIGNATURE: list[Any] = [ctypes.c_int, ctypes.c_int, ctypes.POINTER(_Rows), ctypes.c_void_p, *[ctypes.c_long] * 3]


def scale_kind(matrix: QuantizedMatrix) -> int:
    """How `csrc/quant.h` calls the scales and minimums of a matrix. Those of 8 bits alone are float32."""
    if matrix.super_scales is not None:
        return IN_SUPERS if matrix.minimums is None else IN_SUPERS_WITH_MINIMUM
    if matrix.minimums is not None:
        return WITH_MINIMUM
    return SCALE_KINDS[torch.float32 if matrix.bits == 8 else matrix.scales.dtype]


def row_bytes(bits: int, scale_kind: int, columns: int, group: int) -> int:
    """Of a row and its share of a panel: a scale a group, and a minimum of as many bytes or, of 4 bits, a zero point of
    one byte; in super-blocks two bytes of each for 256 columns."""
    codes, groups = columns * bits // 8, columns // group
    if scale_kind in (IN_SUPERS, IN_SUPERS_WITH_MINIMUM):
        return codes + (groups + columns // SUPER * 2) * (2 if scale_kind == IN_SUPERS_WITH_MINIMUM else 1)
    if scale_kind == WITH_MINIMUM:
        return codes + groups * 4
    return codes + groups * ((4 if scale_kind == SCALE_KINDS[torch.float32] else 2) + (bits == 4))


def pack_quantized(library: Any) -> Callable[[QuantizedMatrix], PackedQuantized]:
    """The table's `pack_quantized`, by the C functions of `library`."""
    panel = library.panel_width()

    def pack(matrix: QuantizedMatrix) -> PackedQuantized:
        check_codes(matrix)
        (rows, columns), group, kind = matrix.codes.shape, matrix.group_size, scale_kind(matrix)
        scales = matrix.scales.float() if kind == SCALE_KINDS[torch.float32] else matrix.scales
        parts = [
            None if part is None else part.cpu().contiguous()
            for part in (
                matrix.codes, scales, matrix.zeros if matrix.minimums is None else matrix.minimums,
                matrix.super_scales, matrix.super_minimums,
            )
        ]  # fmt: skip
        padded = -(-rows // panel) * panel
        data = room(padded * row_bytes(matrix.bits, kind, columns, group))
        given = _Rows(*(None if part is None else part.data_ptr() for part in parts))
        library.pack_quant(matrix.bits, kind, given, data.data_ptr(), rows, columns, group)
        return PackedQuantized(data, matrix.bits, kind, rows, columns, group, data.data_ptr())

    return pack


def embed_quantized(library: Any, ids: Tensor, weight: PackedQuantized, out: Tensor) -> None:
    """(ids int64 [T]) -> out float32 [T, K]. Raises IndexError."""
    failed = library.embed_quant(
        weight.bits, weight.scale_kind, ids.data_ptr(), weight.address, out.data_ptr(), len(ids), weight.rows,
        weight.columns, weight.group,
    )  # fmt: skip
    answered(failed, f"a token id is not below {weight.rows}")


def linear_quantized(
    library: Any, x: Tensor, weight: PackedQuantized, bias: Tensor | None, out: Tensor, exact: bool, int8: bool = False
) -> None:
    """(x float32 [T, K], bias float32 [N] or None) -> out [T, N]. Raises MemoryError.

    C rounds rows of x to bfloat16. `exact`: rows are the sum of three numbers of bfloat16 each, which hold all 24 bits
    of a float32, and so are their products. `int8`: C quantizes rows to 8 bits instead, `exact` or not (`csrc/int8.h`).
    """
    if int8 or not exact:
        _multiply(library.linear_int8 if int8 else library.linear_quant, x.contiguous(), weight, bias, out)
        return
    step = max(1, EXACT_BYTES // (3 * 4 * (weight.rows + weight.columns)))
    for start in range(0, len(x), step):
        left, parts = x[start : start + step], []
        for _ in range(3):
            parts.append(left.bfloat16().float())
            left = left - parts[-1]
        made = torch.empty(3, len(left), weight.rows)
        _multiply(library.linear_quant, torch.cat(parts), weight, None, made)
        torch.sum(made, 0, out=out[start : start + step])
    if bias is not None:
        out += bias


def _multiply(function: Any, x: Tensor, weight: PackedQuantized, bias: Tensor | None, out: Tensor) -> None:
    failed = function(
        weight.bits, weight.scale_kind, x.data_ptr(), weight.address, None if bias is None else bias.data_ptr(),
        out.data_ptr(), len(x), weight.rows, weight.columns, weight.group,
    )  # fmt: skip
    answered(failed, "")
