"""From the matrices of one grouping to codes, a run of rows at a time: ranges, then codes, then what they cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from plimsoll.quantjob.clip import narrowed
from plimsoll.quantjob.compensate import Order, compensated, order_of
from plimsoll.quantjob.gram import Block, Gram
from plimsoll.quantjob.rounding import Grid, Rounding, fit
from plimsoll.quantjob.workers import Workers

#: Rows that one unit of work codes.
ROWS = 512
#: Elements whose ranges one unit of work looks for: it holds several copies of them.
_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class Coded:
    """One linear: `codes` uint8 [N, K] (of 8 bits int8), and the grid they stand on."""

    grid: Grid
    codes: Tensor

    def values(self, rows: slice = slice(None)) -> Tensor:
        """Float32 [N, K], or those rows of it."""
        zeros = None if self.grid.zeros is None else self.grid.zeros[rows]
        return Grid(self.grid.bits, self.grid.scales[rows], zeros).values(self.codes[rows])

    def write_to(self, weight: Tensor) -> None:
        """The values in place of what `weight` float32 [N, K] holds."""
        for start in range(0, len(weight), ROWS):
            weight[start : start + ROWS] = self.values(slice(start, start + ROWS))


def nearest(weight: Tensor, rounding: Rounding, workers: Workers) -> Coded:
    """`weight` float32 [N, K] rounded over the whole range of each group."""

    def some(rows: Tensor) -> Coded:
        grid = fit(rows, rounding)
        return Coded(grid, grid.codes(rows).to(torch.int8 if rounding.bits == 8 else torch.uint8))

    return _stacked(workers.map(some, weight.split(ROWS)))


@dataclass(frozen=True)
class Coder:
    """4-bit codes of linears that see the same inputs.

    Attributes:
        gram: of those inputs, unscaled.
        clip: look for narrower ranges.
        compensate: let each column make up for those before it.
    """

    gram: Gram
    group_size: int
    clip: bool
    compensate: bool
    workers: Workers

    def code(self, weight: Tensor, scale: Tensor) -> Coded:
        """Codes of `weight` float32 [N, K] times `scale` float32 [K], the linear behind inputs divided by it."""
        runs = weight.split(ROWS)
        moments = self.gram.of_groups(self.group_size) / _outer(scale.view(-1, self.group_size))
        grids = [self._grids(rows, scale, moments) for rows in runs]
        codes = [torch.empty(rows.shape, dtype=torch.uint8) for rows in runs]
        for block in self.gram.blocks:
            part = slice(block.start, block.stop)
            order = order_of(block.gram, scale[part], self.gram.tokens) if self.compensate else None
            units = list(zip(runs, grids, codes, strict=True))
            self.workers.map(partial(self._code_block, block, scale[part], order), units)
        return _stacked([Coded(grid, code) for grid, code in zip(grids, codes, strict=True)])

    def loss(self, weight: Tensor, scale: Tensor, coded: Coded) -> float:
        """Squared error of the outputs, summed over the tokens seen."""

        def some(start: int) -> Tensor:
            rows = slice(start, start + step)
            return self.gram.loss(coded.values(rows).div_(scale).sub_(weight[rows]))

        step = max(1, _ELEMENTS // weight.shape[1])
        return sum(float(part) for part in self.workers.map(some, range(0, len(weight), step)))

    def _grids(self, rows: Tensor, scale: Tensor, moments: Tensor) -> Grid:
        def some(part: Tensor) -> Grid:
            scaled = part * scale
            if self.clip:
                return narrowed(scaled, self.group_size, moments)
            return fit(scaled, Rounding(4, self.group_size))

        return joined(self.workers.map(some, rows.split(max(1, _ELEMENTS // rows.shape[1]))))

    def _code_block(self, block: Block, scale: Tensor, order: Order | None, unit: tuple[Tensor, Grid, Tensor]) -> None:
        rows, grid, codes = unit
        assert grid.zeros is not None
        first, last = block.start // self.group_size, block.stop // self.group_size
        part = Grid(4, grid.scales[:, first:last], grid.zeros[:, first:last])
        scaled = (rows[:, block.start : block.stop] * scale).contiguous()
        found = part.codes(scaled) if order is None else compensated(scaled, part, order)
        codes[:, block.start : block.stop] = found.to(torch.uint8)


def _outer(scale: Tensor) -> Tensor:
    """[..., C] -> [..., C, C] of products."""
    return scale.unsqueeze(-1) * scale.unsqueeze(-2)


def joined(grids: Sequence[Grid]) -> Grid:
    """Rows below rows."""
    zeros = [grid.zeros for grid in grids if grid.zeros is not None]
    return Grid(grids[0].bits, torch.cat([grid.scales for grid in grids]), torch.cat(zeros) if zeros else None)


def _stacked(parts: Sequence[Coded]) -> Coded:
    return Coded(joined([part.grid for part in parts]), torch.cat([part.codes for part in parts]))
