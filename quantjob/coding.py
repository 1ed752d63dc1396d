"""From the matrices of one grouping to codes, a run of rows at a time: ranges, then codes, then what they cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from plimsoll.api.job_budget import CODED_ROWS as ROWS
from plimsoll.quantjob.clip import narrowed
from plimsoll.quantjob.compensate import Order, compensated, order_of
from plimsoll.quantjob.gram import Block, Gram
from plimsoll.quantjob.rounding import Grid, Rounding, fit
from plimsoll.quantjob.workers import Workers

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

    return stacked(workers.map(some, weight.split(ROWS)))


@dataclass(frozen=True)
class CodedRun:
    """A run of rows: its codes, and the squared errors of the outputs, summed over the tokens seen, with them and with
    rounding to nearest."""

    coded: Coded
    loss: float
    nearest_loss: float


@dataclass(frozen=True)
class Coder:
    """4-bit codes of rows of linears that see the same inputs: a task of `crew.py`.

    Attributes:
        gram: of those inputs, unscaled.
        scale: float32 [K]: the inputs are divided by it, so the rows that get codes are multiplied by it.
        clip: look for narrower ranges.
        compensate: let each column make up for those before it.
    """

    gram: Gram
    scale: Tensor
    group_size: int
    clip: bool
    compensate: bool

    def __call__(self, runs: Sequence[Tensor], workers: Workers) -> list[CodedRun]:
        """Args: runs: float32 [R, K] each, as `runs_of` cuts them: their cut decides the bits."""
        moments = self.gram.of_groups(self.group_size) / _outer(self.scale.view(-1, self.group_size))
        grids = [self._grids(rows, moments, workers) for rows in runs]
        codes = [torch.empty(rows.shape, dtype=torch.uint8, device=rows.device) for rows in runs]
        units = list(zip(runs, grids, codes, strict=True))
        for block in self.gram.blocks:
            scale = self.scale[block.start : block.stop]
            order = order_of(block.gram, scale, self.gram.tokens) if self.compensate else None
            workers.map(partial(self._code_block, block, order), units)
        return workers.map(self._judged, [(rows, Coded(grid, found)) for rows, grid, found in units])

    def _grids(self, rows: Tensor, moments: Tensor, workers: Workers) -> Grid:
        def some(part: Tensor) -> Grid:
            scaled = part * self.scale
            if self.clip:
                return narrowed(scaled, self.group_size, moments)
            return fit(scaled, Rounding(4, self.group_size))

        return joined(workers.map(some, rows.split(max(1, _ELEMENTS // rows.shape[1]))))

    def _code_block(self, block: Block, order: Order | None, unit: tuple[Tensor, Grid, Tensor]) -> None:
        rows, grid, codes = unit
        assert grid.zeros is not None
        first, last = block.start // self.group_size, block.stop // self.group_size
        part, columns = Grid(4, grid.scales[:, first:last], grid.zeros[:, first:last]), slice(block.start, block.stop)
        scaled = (rows[:, columns] * self.scale[columns]).contiguous()
        found = part.codes(scaled) if order is None else compensated(scaled, part, order)
        codes[:, columns] = found.to(torch.uint8)

    def _judged(self, unit: tuple[Tensor, Coded]) -> CodedRun:
        rows, coded = unit
        step = max(1, _ELEMENTS // rows.shape[1])
        loss = before = 0.0
        for start in range(0, len(rows), step):
            some = slice(start, start + step)
            weight = rows[some]
            loss += float(self.gram.loss(coded.values(some).div_(self.scale).sub_(weight)))
            before += float(self.gram.loss(fit(weight, Rounding(4, self.group_size)).nearest(weight).sub_(weight)))
        return CodedRun(coded, loss, before)


def runs_of(matrix: Tensor) -> list[Tensor]:
    """Rows of [N, K] in runs as long as each other, of at most `ROWS`."""
    return list(matrix.tensor_split(max(1, -(-len(matrix) // ROWS))))


def _outer(scale: Tensor) -> Tensor:
    """[..., C] -> [..., C, C] of products."""
    return scale.unsqueeze(-1) * scale.unsqueeze(-2)


def joined(grids: Sequence[Grid]) -> Grid:
    """Rows below rows."""
    zeros = [grid.zeros for grid in grids if grid.zeros is not None]
    return Grid(grids[0].bits, torch.cat([grid.scales for grid in grids]), torch.cat(zeros) if zeros else None)


def stacked(parts: Sequence[Coded]) -> Coded:
    """The same of whole linears."""
    return Coded(joined([part.grid for part in parts]), torch.cat([part.codes for part in parts]))
