"""Blocks of several kinds in the one kind that holds them together (`api.blocks.held_together`): no value changes."""

import torch

from plimsoll.api.precision import Codes
from plimsoll.checkpoint.quantized.linear import MIDDLE
from plimsoll.runtime.kernels.quantized import QuantizedMatrix


def as_held(found: QuantizedMatrix, held: Codes) -> QuantizedMatrix:
    """The same values with codes, groups and minimums as `held` has them. Codes of 4 bits alone get zero points.

    Codes of 4 bits become signed ones of 8; a scale of 32 columns becomes two of 16; blocks without minimums get some.
    """
    codes, scales, zeros, least, super_least = (
        found.codes, found.scales, found.zeros, found.minimums, found.super_minimums,
    )  # fmt: skip
    if held.bits == 8 and found.bits == 4:
        codes = codes.to(torch.int8)
        if least is None:
            codes -= MIDDLE[4]
    if held.minimums and least is None:
        if held.supers and found.super_scales is not None:
            super_least = torch.zeros_like(found.super_scales)
        # Eight scales are as exact in 16 bits as one.
        least = -MIDDLE[4] * scales if held.bits == 4 else torch.zeros_like(scales)
    elif held.bits == 4 and zeros is None and least is None and not held.supers:
        zeros = torch.full(scales.shape, MIDDLE[4], dtype=torch.uint8)
    more = max(1, found.group_size // held.group)
    if more > 1:
        scales = scales.repeat_interleave(more, dim=1)
        least = None if least is None else least.repeat_interleave(more, dim=1)
    return QuantizedMatrix(held.bits, codes, scales, zeros, least, found.super_scales, super_least)
