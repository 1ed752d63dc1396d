"""Floats rounded to nearest codes as they are loaded: no data, no search, the same codes every time.

They are those that `quantjob` writes by the methods rtn and int8; a test holds the two together.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from plimsoll.api.errors import CheckpointError
from plimsoll.runtime.kernels.quantized import QuantizedMatrix

#: The least that a float16 scale can be.
LEAST_SCALE = 2.0**-24


def round_to_nearest(
    weight: Tensor, bits: Literal[4, 8], group: int, name: str, largest: Callable[[Tensor], Tensor] | None = None
) -> QuantizedMatrix:
    """(weight float32 [N, K]) -> codes in groups of `group` columns, scales of float16.

    4 bits: sixteen values from the lowest to the highest of each group, zero always among them. 8 bits: -127 to 127
    about zero. Scales are rounded before codes are chosen, so that codes are the nearest to what is served.

    Args:
        largest: where groups go on in other ranks' columns: (float32 [M]) -> the largest of all ranks' M values each.

    Raises:
        CheckpointError: `name` holds values that are not finite, or lie beyond float16's scales.
    """
    values = weight.unflatten(1, (-1, group))
    if bits == 8:
        high = values.abs().amax(2)
        if largest is not None:
            high = largest(high.flatten()).view_as(high)
        span = high / 127
    else:
        low, high = values.amin(2).clamp_(max=0), values.amax(2).clamp_(min=0)
        if largest is not None:
            ends = largest(torch.stack((-low, high)).flatten()).view(2, *low.shape)
            low, high = -ends[0], ends[1]
        span = (high - low) / 15
    stored = span.to(torch.float16).clamp_(min=LEAST_SCALE)
    if not bool(torch.isfinite(stored).all()):
        raise CheckpointError(
            "holds values that are not finite, or too large for float16 scales", field=name,
            fix="Serve it in bfloat16 or float32",
        )  # fmt: skip
    scales = stored.float()
    codes = (values / scales.unsqueeze(2)).round_()
    if bits == 8:
        return QuantizedMatrix(8, codes.clamp_(-127, 127).to(torch.int8).flatten(1), stored)
    zeros = (-low / scales).round_().clamp_(0, 15)
    codes = codes.add_(zeros.unsqueeze(2)).clamp_(0, 15).to(torch.uint8).flatten(1)
    return QuantizedMatrix(4, codes, stored, zeros.to(torch.uint8))
