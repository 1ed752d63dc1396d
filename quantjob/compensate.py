"""Codes chosen one column after another, each making up for the error of those before it.

The error of a rounded column is spread over the columns not rounded yet, as the inputs' second moments say is best
(optimal brain surgeon, as GPTQ does it: Frantar et al. 2022, arXiv 2210.17323). The grids are fixed before, so columns
may be taken in any order, those with the largest inputs first, and the stored layout knows nothing of it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from plimsoll.quantjob.rounding import Grid

#: Share of the mean of the diagonal added to it: the inputs' moments are estimated from few tokens.
DAMPING = 0.01
#: Columns whose errors reach the columns after them together.
_LAZY = 64


@dataclass(frozen=True)
class Order:
    """How the C columns of one block of a Gram matrix are taken.

    Attributes:
        columns: int64 [C], in the order taken.
        factor: float32 [C, C], upper Cholesky factor of the inverse moments in that order.
    """

    columns: Tensor
    factor: Tensor


def order_of(gram: Tensor) -> Order | None:
    """For the sums of products float32 [C, C] of the inputs' columns; None where they cannot be inverted."""
    columns = torch.argsort(gram.diagonal(), descending=True, stable=True)
    moments = gram[columns][:, columns]
    # A column that is always 0 must not make the matrix singular, nor may few tokens.
    moments.diagonal().add_(DAMPING * gram.diagonal().mean() + torch.finfo(torch.float32).tiny)
    lower, failed = torch.linalg.cholesky_ex(moments)
    if failed:
        return None
    factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if failed or not torch.isfinite(factor).all():
        return None
    return Order(columns, factor)


def compensated(weight: Tensor, grid: Grid, order: Order) -> Tensor:
    """Codes float32 [R, C] of `weight` float32 [R, C] on a 4-bit grid of these columns."""
    assert grid.zeros is not None
    group = order.columns // (weight.shape[1] // grid.scales.shape[1])
    # Columns first: a column is then one run of memory.
    work = weight.T[order.columns].contiguous()
    scales, zeros = grid.scales.T[group], grid.zeros.T[group]
    chosen = torch.empty_like(work)
    pivots = order.factor.diagonal().tolist()
    for start in range(0, len(work), _LAZY):
        stop = min(start + _LAZY, len(work))
        errors = torch.empty(stop - start, work.shape[1])
        for index in range(start, stop):
            column, zero, scale = work[index], zeros[index], scales[index]
            code = torch.div(column, scale).round_().add_(zero).clamp_(0, 15)
            chosen[index] = code
            error = torch.sub(code, zero).mul_(scale).neg_().add_(column).div_(pivots[index])
            errors[index - start] = error
            work[index + 1 : stop].addr_(order.factor[index, index + 1 : stop], error, alpha=-1)
        work[stop:].addmm_(order.factor[start:stop, stop:].T, errors, alpha=-1)
    codes = torch.empty_like(work)
    codes[order.columns] = chosen
    return codes.T.contiguous()
