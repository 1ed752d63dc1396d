"""Narrower ranges: a group whose outliers are cut has finer steps for the rest, where its inputs ask for it.

AWQ's clipping (Lin et al. 2023, arXiv 2306.00978, section 3.2) made asymmetric: both ends move, and each group is
judged by E[(x . d)^2] over its own inputs, with the scale and zero point as they will be stored.
"""

from itertools import product

import torch
from torch import Tensor

from plimsoll.quantjob.rounding import Grid, grid_of_range, ranges

#: Shares of the range tried for both ends together, and then for each end around the best of them.
TOGETHER = tuple(1 - 0.06 * step for step in range(10))
APART = (-0.08, -0.04, 0.0, 0.04, 0.08)


def narrowed(weight: Tensor, group_size: int, group_grams: Tensor) -> Grid:
    """The best grid of each group; the whole range where nothing is better.

    Args:
        weight: float32 [R, K], rows of a matrix.
        group_grams: float32 [K / group, group, group], sums of products of the inputs (`Gram.of_groups`).
    """
    low, high = ranges(weight, group_size)
    groups = weight.view(len(weight), -1, group_size).transpose(0, 1).contiguous()

    def losses(grid: Grid) -> Tensor:
        """[R, G]."""
        scales, zeros = grid.scales.T.unsqueeze(-1), _zeros(grid).T.unsqueeze(-1)
        change = (groups / scales).round_().add_(zeros).clamp_(0, 15).sub_(zeros).mul_(scales).sub_(groups)
        return torch.bmm(change, group_grams).mul_(change).sum(-1).T

    kept = torch.ones_like(low), torch.ones_like(high)
    best = losses(grid_of_range(low, high))

    def attempt(low_share: Tensor, high_share: Tensor) -> None:
        nonlocal best, kept
        found = losses(grid_of_range(low * low_share, high * high_share))
        better = found < best
        best = torch.where(better, found, best)
        kept = torch.where(better, low_share, kept[0]), torch.where(better, high_share, kept[1])

    for share in TOGETHER[1:]:
        attempt(torch.full_like(low, share), torch.full_like(high, share))
    middle = kept
    for down, up in product(APART, repeat=2):
        if (down, up) != (0.0, 0.0):
            attempt((middle[0] + down).clamp_(max=1), (middle[1] + up).clamp_(max=1))
    return grid_of_range(low * kept[0], high * kept[1])


def _zeros(grid: Grid) -> Tensor:
    assert grid.zeros is not None
    return grid.zeros
