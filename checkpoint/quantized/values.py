"""Stored floats and integers from and to numpy, with checks that name the tensor."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.checkpoint import RawTensor
from plimsoll.checkpoint.quantized.linear import ScaleDtype
from plimsoll.checkpoint.safetensors_writer import encode

#: Scales of 4 bits are held as stored and sized as 2 bytes; those of 8 bits are held in float32.
SCALE_DTYPES: Mapping[int, tuple[ScaleDtype, ...]] = {4: ("F16", "BF16"), 8: ("F16", "BF16", "F32")}


def stored(dtype: str, data: npt.NDArray[Any]) -> RawTensor:
    """A tensor as a file holds it: contiguous, with the format's name of its dtype."""
    data = np.ascontiguousarray(data)
    return RawTensor(dtype, data.shape, data)


def store_scales(scales: npt.NDArray[np.float32], dtype: ScaleDtype, bits: int, name: str) -> RawTensor:
    """`scales` in `dtype`.

    Raises:
        CheckpointError: `dtype` is none for weights of `bits`, or a value is not exactly one of it: what is served
            would not be what was measured.
    """
    if dtype not in SCALE_DTYPES[bits]:
        raise CheckpointError(
            f"{bits}-bit weights have scales of {' or '.join(SCALE_DTYPES[bits])}", field=name, value=dtype,
            fix="Round them before coding",
        )  # fmt: skip
    data = encode(scales, dtype, name)
    if not np.array_equal(floats(dtype, data), scales):
        raise CheckpointError(f"holds scales that are no values of {dtype}", field=name, fix="Round them before coding")
    return stored(dtype, data)


def read_scales(raw: RawTensor, name: str) -> tuple[npt.NDArray[np.float32], ScaleDtype]:
    """Raises CheckpointError for a scale that is not finite."""
    scales = floats(raw.dtype, raw.data)
    if not np.isfinite(scales).all():
        raise CheckpointError(
            f"{int((~np.isfinite(scales)).sum())} of {scales.size} scales are not finite", field=name,
            fix="The checkpoint is damaged, or was quantized from weights that overflowed; download or make it again",
        )  # fmt: skip
    return scales, cast(ScaleDtype, raw.dtype)


def floats(dtype: str, data: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Values of a `RawTensor` of BF16, F16 or F32 in float32."""
    if dtype == "BF16":
        return (data.astype("<u4") << 16).view(np.float32)
    return data.astype(np.float32)
