"""Scales of input channels that make rounding cost least: AWQ (Lin et al. 2023, arXiv 2306.00978, section 3.1).

Candidates are the identity, powers of the inputs' mean magnitude, and those divided by powers of the weights' (the
"duo" grid of AutoAWQ). Each is judged by the exact squared error of the linears' outputs through the inputs' Gram
matrix; the best few then by the part of the layer they sit in.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plimsoll.quantjob.gram import Gram
from plimsoll.quantjob.rounding import Rounding, fit, grouped
from plimsoll.quantjob.workers import Workers

#: Exponents tried in each grid.
STEPS = 20
#: Candidates that whole-block judging looks at, the identity besides.
FINALISTS = 4
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


def rounding_loss(matrices: Sequence[Tensor], scale: Tensor, rounding: Rounding, gram: Gram) -> float:
    """Squared error of the outputs of all matrices when they are rounded under `scale` float32 [K]."""
    total = 0.0
    for matrix in matrices:
        for rows in matrix.split(ROWS):
            scaled = rows * scale
            total += float(gram.loss(fit(scaled, rounding).nearest(scaled).div_(scale).sub_(rows)))
    return total


def search(
    found: Sequence[Candidate],
    proxy: Callable[[Tensor], float],
    judge: Callable[[Tensor], float] | None,
    workers: Workers,
) -> Candidate:
    """The best of `found` (the identity first) by `proxy`, the best few of those by `judge` if there is one.

    Both are told a scale of the source's channels. Where nothing finite is better, the identity is chosen.
    """
    losses = workers.map(lambda candidate: proxy(candidate.scale), found)
    kept = _smallest(losses, FINALISTS if judge is not None else 1)
    if judge is not None and len(kept) > 1:
        # One after another: each holds a copy of the matrices it judges, and spreads its own work.
        judged = {index: judge(found[index].scale) for index in kept}
        losses = [judged.get(index, math.inf) for index in range(len(found))]
        kept = _smallest(losses, 1)
    return found[kept[0]]


def _smallest(losses: Sequence[float], count: int) -> list[int]:
    """Indices of the `count` smallest finite losses, the earlier of equals first, and 0."""
    order = sorted((loss, index) for index, loss in enumerate(losses) if math.isfinite(loss))
    kept = [index for _, index in order[:count]]
    return kept if 0 in kept else [*kept, 0]
