"""Weights of 4 and 8 bits in the native table: they lie and are multiplied as `csrc/quant.h` and `gemm_quant.c` say."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plimsoll.runtime.kernels.native_checks import answered
from plimsoll.runtime.kernels.quantized import QuantizedMatrix, check_codes

SCALE_KINDS = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}
WITH_MINIMUM = 3
"""The kind of float16 scales that have float16 minimums beside them."""
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


def row_bytes(bits: int, scale_kind: int, columns: int, group: int) -> int:
    """Of a row and its share of a panel. Scales of 8 bits are float32; 4 bits have a zero point of one byte or a
    minimum of two a group."""
    a_group = (
        4 if bits == 8 or scale_kind == WITH_MINIMUM else (4 if scale_kind == SCALE_KINDS[torch.float32] else 2) + 1
    )
    return columns * bits // 8 + columns // group * a_group


def pack_quantized(library: Any) -> Callable[[QuantizedMatrix], PackedQuantized]:
    """The table's `pack_quantized`, by the C functions of `library`."""
    panel = library.panel_width()

    def pack(matrix: QuantizedMatrix) -> PackedQuantized:
        check_codes(matrix)
        (rows, columns), group = matrix.codes.shape, matrix.group_size
        scales = (matrix.scales.float() if matrix.bits == 8 else matrix.scales).cpu().contiguous()
        codes, kind = matrix.codes.cpu().contiguous(), SCALE_KINDS[scales.dtype]
        given = matrix.zeros if matrix.minimums is None else matrix.minimums
        zeros = None if given is None else given.cpu().contiguous()
        kind = kind if matrix.minimums is None else WITH_MINIMUM
        padded = -(-rows // panel) * panel
        data = torch.empty(padded * row_bytes(matrix.bits, kind, columns, group), dtype=torch.uint8)
        library.pack_quant(
            matrix.bits, kind, codes.data_ptr(), scales.data_ptr(), None if zeros is None else zeros.data_ptr(),
            data.data_ptr(), rows, columns, group,
        )  # fmt: skip
        return PackedQuantized(data, matrix.bits, kind, rows, columns, group, data.data_ptr())

    return pack


def embed_quantized(library: Any, ids: Tensor, weight: PackedQuantized, out: Tensor) -> None:
    """(ids int64 [T]) -> out float32 [T, K], rows of 8 bits. Raises ValueError for those of 4, IndexError."""
    if weight.bits != 8:
        raise ValueError("an embedding is whole or of 8 bits")
    failed = library.embed_quant(
        ids.data_ptr(), weight.address, out.data_ptr(), len(ids), weight.rows, weight.columns, weight.group
    )  # fmt: skip
    answered(failed, f"a token id is not below {weight.rows}")


def linear_quantized(
    library: Any, x: Tensor, weight: PackedQuantized, bias: Tensor | None, out: Tensor, exact: bool
) -> None:
    """(x float32 [T, K], bias float32 [N] or None) -> out [T, N]. Raises MemoryError.

    C rounds rows of x to bfloat16. `exact`: rows are the sum of three numbers of bfloat16 each, which hold all 24 bits
    of a float32, and so are their products.
    """
    if not exact:
        _multiply(library, x.contiguous(), weight, bias, out)
        return
    step = max(1, EXACT_BYTES // (3 * 4 * (weight.rows + weight.columns)))
    for start in range(0, len(x), step):
        left, parts = x[start : start + step], []
        for _ in range(3):
            parts.append(left.bfloat16().float())
            left = left - parts[-1]
        made = torch.empty(3, len(left), weight.rows)
        _multiply(library, torch.cat(parts), weight, None, made)
        torch.sum(made, 0, out=out[start : start + step])
    if bias is not None:
        out += bias


def _multiply(library: Any, x: Tensor, weight: PackedQuantized, bias: Tensor | None, out: Tensor) -> None:
    failed = library.linear_quant(
        weight.bits, weight.scale_kind, x.data_ptr(), weight.address, None if bias is None else bias.data_ptr(),
        out.data_ptr(), len(x), weight.rows, weight.columns, weight.group,
    )  # fmt: skip
    answered(failed, "")
