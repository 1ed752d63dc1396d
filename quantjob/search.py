"""Scales of input channels that make rounding cost least: AWQ (Lin et al. 2023, arXiv 2306.00978, section 3.1).

Candidates are the identity, powers of the inputs' mean magnitude, and those divided by powers of the weights' (the
"duo" grid of AutoAWQ). Each is judged by the exact squared error of the linears' outputs through the inputs' Gram
matrix. (Judging the best few by whole attention or the whole MLP was measured: a quarter more time, no gain.)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plimsoll.api.job_budget import JUDGED_ROWS as MOST_JUDGED
from plimsoll.quantjob.gram import Gram
from plimsoll.quantjob.rounding import Rounding, fit, grouped
from plimsoll.quantjob.workers import Workers

#: Exponents tried in each grid.
STEPS = 20
#: Rows, spread evenly over all that share a scale, that candidates are judged on: about as many.
JUDGED_ROWS = MOST_JUDGED // 2
#: Rows rounded at a time.
ROWS = 128


@dataclass(frozen=True)
class Candidate:
    """`scale` float32 [channels of the source], and what it came of."""

    name: str
    exponent: float
    scale: Tensor


def candidates(inputs: Tensor, weights: Tensor) -> list[Candidate]:
    """The identity and both grids, from mean magnitudes float32 [C] of inputs and of normalised weights."""
    inputs, weights = inputs.clamp(min=1e-8), weights.clamp(min=1e-8)
    found = [identity(len(inputs))]
    for step in range(1, STEPS):
        found.append(_candidate("activation", step / STEPS, inputs ** (step / STEPS)))
    for step in range(STEPS + 1):
        power = step / STEPS
        found.append(_candidate("duo", power, inputs**power / (weights ** (1 - power) + 1e-4)))
    return found


def identity(channels: int) -> Candidate:
    """Rounding as it is."""
    return Candidate("identity", 0.0, torch.ones(channels))


def _candidate(name: str, exponent: float, scale: Tensor) -> Candidate:
    scale = scale.clamp(min=1e-4)
    scale = scale / (scale.max() * scale.min()).sqrt()
    return Candidate(name, exponent, torch.where(torch.isfinite(scale), scale, torch.ones_like(scale)))


def weight_magnitude(matrices: Sequence[Tensor], group_size: int) -> Tensor:
    """float32 [K]: the mean over all rows of |w| as a share of the largest in its group."""
    total = torch.zeros(matrices[0].shape[1])
    for matrix in matrices:
        for rows in matrix.split(ROWS):
            groups = grouped(rows, group_size).abs()
            total += (groups / (groups.amax(-1, keepdim=True) + 1e-6)).view_as(rows).sum(0)
    return total / sum(len(matrix) for matrix in matrices)


def sampled(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Every so many-th row of each, about `JUDGED_ROWS` together."""
    step = max(1, sum(len(matrix) for matrix in matrices) // JUDGED_ROWS)
    return [matrix[::step] for matrix in matrices]


@dataclass(frozen=True)
class Judge:
    """What rounding costs under a scale: a task of `crew.py`.

    Attributes:
        matrices: float32 [R, K] each, rows that are judged.
        gram: of their inputs.
    """

    matrices: Sequence[Tensor]
    rounding: Rounding
    gram: Gram

    def __call__(self, scales: Sequence[Tensor], workers: Workers) -> list[float]:
        """Squared error of the outputs of all matrices when they are rounded under each scale, float32 [K]."""
        return workers.map(self.loss, scales)

    def loss(self, scale: Tensor) -> float:
        """The same under one."""
        total = 0.0
        for matrix in self.matrices:
            for rows in matrix.split(ROWS):
                scaled = rows * scale
                total += float(self.gram.loss(fit(scaled, self.rounding).nearest(scaled).div_(scale).sub_(rows)))
        return total


def best(found: Sequence[Candidate], losses: Sequence[float]) -> Candidate:
    """The candidate with the smallest finite loss, the earlier of equals: the identity, which is first, where nothing
    is better."""
    order = sorted((value, index) for index, value in enumerate(losses) if math.isfinite(value))
    return found[order[0][1]] if order else found[0]
