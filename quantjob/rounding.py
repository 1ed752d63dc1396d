"""Weights to codes and back: w = (code - zero) * scale, groups of columns of one row sharing a scale and a zero.

Scales are rounded to float16 before any code is chosen: what is written is what was fitted.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

#: The smallest and largest scales float16 holds.
LEAST_SCALE, MOST_SCALE = 2.0**-24, 65504.0


@dataclass(frozen=True)
class Rounding:
    """Round to nearest. bits 4: asymmetric groups of `group_size` columns; bits 8: symmetric, one scale a row."""

    bits: int
    group_size: int = 0


@dataclass(frozen=True)
class Grid:
    """The values that codes stand for. `scales` and `zeros` float32 [N, G]; for 8 bits zeros are None and G is 1."""

    bits: int
    scales: Tensor
    zeros: Tensor | None

    def codes(self, weight: Tensor) -> Tensor:
        """Nearest codes to `weight` float32 [N, K], as float32 [N, K]: 0 to 15, or -127 to 127 without zeros."""
        return self._rounded(weight).view_as(weight)

    def values(self, codes: Tensor) -> Tensor:
        """Float32 [N, K] that codes [N, K] stand for."""
        grouped = codes.to(torch.float32).view(len(codes), self.scales.shape[1], -1)
        if self.zeros is not None:
            grouped = grouped - self.zeros.unsqueeze(-1)
        return (grouped * self.scales.unsqueeze(-1)).view(codes.shape)

    def nearest(self, weight: Tensor) -> Tensor:
        """`weight` float32 [N, K] moved to the nearest value of the grid."""
        return self.values(self.codes(weight))

    def _rounded(self, weight: Tensor) -> Tensor:
        grouped = weight.view(len(weight), self.scales.shape[1], -1) / self.scales.unsqueeze(-1)
        if self.zeros is None:
            return grouped.round_().clamp_(-127, 127)
        return grouped.round_().add_(self.zeros.unsqueeze(-1)).clamp_(0, 15)


def grouped(weight: Tensor, group_size: int) -> Tensor:
    """[N, K] as [N, K / group, group]; one group a row for 0."""
    return weight.view(len(weight), 1 if group_size == 0 else weight.shape[1] // group_size, -1)


def ranges(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """(lowest, highest) of each group, [N, G]; zero is always inside, since a zero point of 0 to 15 puts it there."""
    groups = grouped(weight, group_size)
    return groups.amin(-1).clamp_(max=0), groups.amax(-1).clamp_(min=0)


def grid_of_range(low: Tensor, high: Tensor) -> Grid:
    """Sixteen values from about `low` to about `high`, both [N, G]."""
    scales = stored_scale((high - low) / 15)
    return Grid(4, scales, (-low / scales).round_().clamp_(0, 15))


def stored_scale(scales: Tensor) -> Tensor:
    """`scales` as float16 holds them, never 0; a scale beyond float16 becomes infinite."""
    return scales.to(torch.float16).to(torch.float32).clamp_(min=LEAST_SCALE)


def fit(weight: Tensor, rounding: Rounding) -> Grid:
    """The grid over each group's whole range. `weight` float32 [N, K], K a multiple of the group."""
    if rounding.bits == 8:
        return Grid(8, stored_scale(weight.abs().amax(1, keepdim=True) / 127), None)
    return grid_of_range(*ranges(weight, rounding.group_size))
