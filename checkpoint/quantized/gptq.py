"""AutoGPTQ's layouts: codes along the input features in natural order, transposed.

    qweight int32 [K * bits / 32, N], qzeros int32 [K/g, N * bits / 32], scales [K/g, N], g_idx int32 [K]

The first layout (`gptq`) stores z - 1, the second (`gptq_v2`) z. g_idx gives each column's group; only k // g is read.
Some exporters add biases of zeros to models that have none. https://github.com/AutoGPTQ/AutoGPTQ,
auto_gptq/nn_modules/qlinear/qlinear_cuda.py; https://github.com/ModelCloud/GPTQModel for `gptq_v2`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from plimsoll.api.errors import CheckpointError
from plimsoll.api.quantization import Quantization
from plimsoll.api.shard import Run
from plimsoll.checkpoint.checkpoint import RawTensor
from plimsoll.checkpoint.quantized import words
from plimsoll.checkpoint.quantized.layout import Cut, Part, Shape, Window, enclosing, inside
from plimsoll.checkpoint.quantized.linear import MIDDLE, QuantizedLinear
from plimsoll.checkpoint.quantized.values import SCALE_DTYPES, read_scales


@dataclass(frozen=True)
class GptqLayout:
    """See `Layout`."""

    zero_offset: int = 1
    """1: the first layout."""

    codes: ClassVar[str] = "qweight"
    suffixes: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales", "g_idx")

    def shape(self, codes: Shape, bits: int) -> tuple[int, int]:
        return codes[1], codes[0] * (32 // bits)

    def parts(self, rows: int, columns: int, quantization: Quantization) -> Mapping[str, Part]:
        groups, bits = quantization.groups(columns), quantization.bits
        return {
            "qweight": Part((columns * bits // 32, rows), ("I32",)),
            "qzeros": Part((groups, rows * bits // 32), ("I32",)),
            "scales": Part((groups, rows), SCALE_DTYPES[quantization.bits]),
            "g_idx": Part((columns,), ("I32",), optional=True),
        }

    def cuts(self, window: Window, quantization: Quantization) -> Mapping[str, Cut]:
        per_word, groups = 32 // quantization.bits, window.groups(quantization)
        return {
            "qweight": (enclosing(window.columns, per_word), window.rows),
            "qzeros": (groups, enclosing(window.rows, per_word)),
            "scales": (groups, window.rows),
            "g_idx": (window.columns, None),
        }

    def unpack(
        self, parts: Mapping[str, RawTensor], quantization: Quantization, window: Window, rows: Run, name: str
    ) -> QuantizedLinear:
        bits = quantization.bits
        per_word = 32 // bits
        self._check_order(parts, quantization, window, name)
        held = inside(rows, window.rows[0])
        codes = words.unpack(parts["qweight"].data[:, held].T, bits)
        codes = codes[:, inside(window.columns, window.columns[0] // per_word * per_word)]
        words_of = enclosing(rows, per_word)
        zeros = words.unpack(parts["qzeros"].data[:, inside(words_of, window.rows[0] // per_word)], bits)
        zeros = zeros[:, inside(rows, words_of[0] * per_word)]
        zeros = np.asarray((zeros + np.uint8(self.zero_offset)) & ((1 << bits) - 1), dtype=np.uint8)
        cut = RawTensor(parts["scales"].dtype, (), parts["scales"].data[:, held])
        scales, dtype = read_scales(cut, f"{name}.scales")
        scales = np.ascontiguousarray(scales.T)
        if quantization.symmetric and not (zeros == MIDDLE[bits]).all():
            raise CheckpointError(
                "says sym, and zero points are not all in the middle", field=f"{name}.qzeros",
                value=sorted({int(zero) for zero in zeros.flat})[:8],
                fix="Set checkpoint_format to the layout it is in (gptq or gptq_v2), or sym to false",
            )  # fmt: skip
        if quantization.symmetric:
            signed = (codes ^ MIDDLE[8]).view(np.int8) if bits == 8 else codes
            return QuantizedLinear(signed, scales, None, dtype)
        return QuantizedLinear(codes, scales, np.ascontiguousarray(zeros.T), dtype)

    def _check_order(
        self, parts: Mapping[str, RawTensor], quantization: Quantization, window: Window, name: str
    ) -> None:
        size = quantization.group_size or window.shape[1]
        if "g_idx" in parts and not np.array_equal(parts["g_idx"].data, np.arange(*window.columns) // size):
            raise CheckpointError(
                "columns of a group lie scattered over the row, which would need an index at every product",
                field=f"{name}.g_idx", fix="Quantize it with desc_act false, or take a checkpoint that was",
            )  # fmt: skip
