"""compressed-tensors' `pack-quantized` layout: codes along the input features, in natural order.

    weight_packed int32 [N, K * bits / 32], weight_scale [N, K/g], weight_shape int64 [2] = (N, K)
    weight_zero_point int32 [ceil(N/8), K/g], packed along the output features (4 bits, asymmetric only)

Codes and zero points are signed there and stored with the middle added, which makes them what the other formats
store. https://github.com/vllm-project/compressed-tensors, compressors/quantized_compressors/pack_quantized.py.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from plimsoll.api.errors import CheckpointError
from plimsoll.api.quantization import Quantization
from plimsoll.api.shard import Run
from plimsoll.checkpoint.checkpoint import RawTensor
from plimsoll.checkpoint.quantized import words
from plimsoll.checkpoint.quantized.layout import Cut, Part, Shape, Window, enclosing, inside
from plimsoll.checkpoint.quantized.linear import MIDDLE, QuantizedLinear
from plimsoll.checkpoint.quantized.values import SCALE_DTYPES, read_scales, store_scales, stored


class CompressedLayout:
    """See `Layout`."""

    codes: ClassVar[str] = "weight_packed"
    suffixes: ClassVar[tuple[str, ...]] = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")

    def shape(self, codes: Shape, bits: int) -> tuple[int, int]:
        return codes[0], codes[1] * (32 // bits)

    def parts(self, rows: int, columns: int, quantization: Quantization) -> Mapping[str, Part]:
        groups = quantization.groups(columns)
        parts = {
            "weight_packed": Part((rows, columns * quantization.bits // 32), ("I32",)),
            "weight_scale": Part((rows, groups), SCALE_DTYPES[quantization.bits]),
            "weight_shape": Part((2,), ("I64", "I32")),
        }
        if not quantization.symmetric:
            parts["weight_zero_point"] = Part((-(-rows // 8), groups), ("I32",))
        return parts

    def pack(self, linear: QuantizedLinear, name: str) -> dict[str, RawTensor]:
        """Tensors as compressed-tensors stores them, by suffix; `unpack` is the inverse."""
        per_word = 32 // linear.bits
        if linear.shape[1] % per_word:
            raise CheckpointError(
                f"{linear.bits}-bit weights are packed {per_word} to a word along the input features",
                field=name, value=f"{linear.shape[1]} input features", fix="Leave this module whole",
            )  # fmt: skip
        unsigned = linear.unsigned()
        packed = {
            "weight_packed": stored("I32", words.pack(unsigned, linear.bits)),
            "weight_scale": store_scales(linear.scales, linear.scale_dtype, linear.bits, f"{name}.weight_scale"),
            "weight_shape": stored("I64", np.array(linear.shape, dtype=np.int64)),
        }
        if linear.zeros is not None:
            by_group = words.padded(np.ascontiguousarray(linear.zeros.T), 4)
            packed["weight_zero_point"] = stored("I32", words.pack(by_group, 4).T)
        return packed

    def cuts(self, window: Window, quantization: Quantization) -> Mapping[str, Cut]:
        groups = window.groups(quantization)
        return {
            "weight_packed": (window.rows, enclosing(window.columns, 32 // quantization.bits)),
            "weight_scale": (window.rows, groups),
            "weight_zero_point": (enclosing(window.rows, 8), groups),
            "weight_shape": (None, None),
        }

    def unpack(
        self, parts: Mapping[str, RawTensor], quantization: Quantization, window: Window, rows: Run, name: str
    ) -> QuantizedLinear:
        if tuple(parts["weight_shape"].data) != window.shape:
            raise CheckpointError(
                f"the codes are those of {list(window.shape)}", field=f"{name}.weight_shape",
                value=parts["weight_shape"].data.tolist(), fix="Download the checkpoint again",
            )  # fmt: skip
        held, per_word = inside(rows, window.rows[0]), 32 // quantization.bits
        codes = words.unpack(parts["weight_packed"].data[held], quantization.bits)
        codes = codes[:, inside(window.columns, window.columns[0] // per_word * per_word)]
        cut = RawTensor(parts["weight_scale"].dtype, (), parts["weight_scale"].data[held])
        scales, dtype = read_scales(cut, f"{name}.weight_scale")
        if quantization.bits == 8:
            return QuantizedLinear((codes ^ MIDDLE[8]).view(np.int8), scales, None, dtype)
        if quantization.symmetric:
            return QuantizedLinear(codes, scales, None, dtype)
        words_of = enclosing(rows, 8)
        zeros = words.unpack(parts["weight_zero_point"].data[inside(words_of, window.rows[0] // 8)].T, 4).T
        return QuantizedLinear(codes, scales, np.ascontiguousarray(zeros[inside(rows, words_of[0] * 8)]), dtype)
