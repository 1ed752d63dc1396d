"""AutoAWQ's `gemm` layout: codes transposed, eight to a word along the output features, in an interleaved order.

    qweight int32 [K, N/8], qzeros int32 [K/g, N/8], scales [K/g, N];  w[n, k] = (q - z) * s

The 4 bits at 4i of a word are the column ORDER[i] of its eight. https://github.com/casper-hansen/AutoAWQ,
awq/modules/linear/gemm.py and awq/utils/packing_utils.py.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from plimsoll.api.errors import CheckpointError
from plimsoll.api.quantization import Quantization
from plimsoll.checkpoint.checkpoint import RawTensor
from plimsoll.checkpoint.quantized import words
from plimsoll.checkpoint.quantized.layout import Part, Shape
from plimsoll.checkpoint.quantized.linear import MIDDLE, QuantizedLinear
from plimsoll.checkpoint.quantized.values import SCALE_DTYPES, read_scales, store_scales, stored

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
#: Where each of eight columns lies in a word.
_PLACE = tuple(ORDER.index(column) for column in range(8))


class AwqLayout:
    """See `Layout`."""

    codes: ClassVar[str] = "qweight"
    suffixes: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales")

    def shape(self, codes: Shape, bits: int) -> tuple[int, int]:
        return codes[1] * 8, codes[0]

    def parts(self, rows: int, columns: int, quantization: Quantization) -> Mapping[str, Part]:
        groups = quantization.groups(columns)
        return {
            "qweight": Part((columns, rows // 8), ("I32",)),
            "qzeros": Part((groups, rows // 8), ("I32",)),
            "scales": Part((groups, rows), SCALE_DTYPES[quantization.bits]),
        }

    def pack(self, linear: QuantizedLinear, name: str) -> dict[str, RawTensor]:
        rows, _ = linear.shape
        if linear.bits != 4 or rows % 8:
            raise CheckpointError(
                "AutoAWQ's layout holds 4-bit weights whose output features are a multiple of 8",
                field=name, value=f"{linear.bits} bits, {rows} output features", fix="Write compressed-tensors",
            )  # fmt: skip
        zeros = linear.zeros if linear.zeros is not None else np.full(linear.scales.shape, MIDDLE[4], dtype=np.uint8)
        return {
            "qweight": stored("I32", _pack(linear.codes.T)),
            "qzeros": stored("I32", _pack(zeros.T)),
            "scales": store_scales(
                np.ascontiguousarray(linear.scales.T), linear.scale_dtype, linear.bits, f"{name}.scales"
            ),
        }

    def unpack(
        self, parts: Mapping[str, RawTensor], quantization: Quantization, rows: tuple[int, int], name: str
    ) -> QuantizedLinear:
        # Whole words first, then the columns that are wanted.
        first, last = rows[0] // 8, -(-rows[1] // 8)
        wanted = slice(rows[0] - first * 8, rows[1] - first * 8)
        codes = _unpack(parts["qweight"].data[:, first:last])[:, wanted]
        zeros = _unpack(parts["qzeros"].data[:, first:last])[:, wanted]
        cut = RawTensor(parts["scales"].dtype, (), parts["scales"].data[:, rows[0] : rows[1]])
        scales, dtype = read_scales(cut, f"{name}.scales")
        return QuantizedLinear(
            np.ascontiguousarray(codes.T), np.ascontiguousarray(scales.T), np.ascontiguousarray(zeros.T), dtype
        )


def _pack(columns: npt.NDArray[np.uint8]) -> words.Words:
    rows, count = columns.shape
    ordered = columns.reshape(rows, count // 8, 8)[:, :, ORDER]
    return words.pack(ordered.reshape(rows, count), 4)


def _unpack(packed: npt.NDArray[np.int32]) -> words.Codes:
    rows = packed.shape[0]
    return words.unpack(packed, 4).reshape(rows, -1, 8)[:, :, _PLACE].reshape(rows, -1)
