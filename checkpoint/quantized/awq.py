"""AutoAWQ's `gemm` layout: codes transposed, eight to a word along the output features, in an interleaved order.

    qweight int32 [K, N/8], qzeros int32 [K/g, N/8], scales [K/g, N];  w[n, k] = (q - z) * s

The 4 bits at 4i of a word are the column ORDER[i] of its eight. https://github.com/casper-hansen/AutoAWQ,
awq/modules/linear/gemm.py and awq/utils/packing_utils.py.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from plimsoll.api.errors import CheckpointError
from plimsoll.api.quantization import Quantization
from plimsoll.api.shard import Run
from plimsoll.checkpoint.checkpoint import RawTensor
from plimsoll.checkpoint.quantized import words
from plimsoll.checkpoint.quantized.layout import Cut, Part, Shape, Window, enclosing, inside
from plimsoll.checkpoint.quantized.linear import MIDDLE, QuantizedLinear
from plimsoll.checkpoint.quantized.values import SCALE_DTYPES, read_scales, store_scales, stored

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
#: The output features of a word's four bytes, lower and upper 4 bits.
_NIBBLES = tuple(zip(ORDER[0::2], ORDER[1::2], strict=True))


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
        """Tensors as AutoAWQ stores them, by suffix; `unpack` is the inverse."""
        rows, _ = linear.shape
        if linear.bits != 4 or rows % 8:
            raise CheckpointError(
                "AutoAWQ's layout holds 4-bit weights whose output features are a multiple of 8",
                field=name, value=f"{linear.bits} bits, {rows} output features", fix="Write compressed-tensors",
            )  # fmt: skip
        zeros = linear.zeros if linear.zeros is not None else np.full(linear.scales.shape, MIDDLE[4], dtype=np.uint8)
        return {
            "qweight": stored("I32", _pack(linear.codes)),
            "qzeros": stored("I32", _pack(zeros)),
            "scales": store_scales(
                np.ascontiguousarray(linear.scales.T), linear.scale_dtype, linear.bits, f"{name}.scales"
            ),
        }

    def cuts(self, window: Window, quantization: Quantization) -> Mapping[str, Cut]:
        groups, words_of = window.groups(quantization), enclosing(window.rows, 8)
        return {
            "qweight": (window.columns, words_of),
            "qzeros": (groups, words_of),
            "scales": (groups, window.rows),
        }

    def unpack(
        self, parts: Mapping[str, RawTensor], quantization: Quantization, window: Window, rows: Run, name: str
    ) -> QuantizedLinear:
        # Whole words first, then the rows that are wanted.
        words_of = enclosing(rows, 8)
        some, wanted = inside(words_of, window.rows[0] // 8), inside(rows, words_of[0] * 8)
        codes = _unpack(parts["qweight"].data[:, some])[wanted]
        zeros = _unpack(parts["qzeros"].data[:, some])[wanted]
        cut = RawTensor(parts["scales"].dtype, (), parts["scales"].data[:, inside(rows, window.rows[0])])
        scales, dtype = read_scales(cut, f"{name}.scales")
        return QuantizedLinear(codes, np.ascontiguousarray(scales.T), zeros, dtype)


def _pack(codes: npt.NDArray[np.uint8]) -> words.Words:
    """uint8 [N, C] -> int32 [C, N/8]. Rows are joined before anything is transposed: neighbours in memory stay so."""
    rows, columns = codes.shape
    eights = codes.reshape(rows // 8, 8, columns)
    packed = np.empty((columns, rows // 8, 4), dtype=np.uint8)
    for byte, (low, high) in enumerate(_NIBBLES):
        packed[:, :, byte] = (eights[:, low] | (eights[:, high] << np.uint8(4))).T
    return packed.reshape(columns, -1).view("<i4").astype(np.int32, copy=False)


def _unpack(packed: npt.NDArray[Any]) -> words.Codes:
    """int32 [C, N/8] -> uint8 [N, C]."""
    columns, count = packed.shape
    stored_bytes = np.ascontiguousarray(packed, dtype="<i4").view(np.uint8).reshape(columns, count, 4)
    eights = np.empty((count, 8, columns), dtype=np.uint8)
    for byte, (low, high) in enumerate(_NIBBLES):
        plane = np.ascontiguousarray(stored_bytes[:, :, byte].T)
        np.bitwise_and(plane, 15, out=eights[:, low])
        np.right_shift(plane, 4, out=eights[:, high])
    return eights.reshape(count * 8, columns)
