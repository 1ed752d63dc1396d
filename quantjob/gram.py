"""What a linear layer sees, in one matrix: with G = X^T X of its inputs, ||X D^T||^2 = tr(D G D^T) for any change D of
its weights, exactly, for any number of tokens.

A matrix of many columns keeps blocks along the diagonal alone, which leaves out how columns of different blocks vary
together; the memory is then linear in the columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from plimsoll.api.job_budget import GRAM_COLUMNS
from plimsoll.quantjob.workers import Workers

#: Columns of the widest block: what the budget counts.
WIDEST = GRAM_COLUMNS
#: Columns of the result that one unit of work computes.
_STRIP = 256


@dataclass(frozen=True)
class Block:
    """Columns [start, stop) of the inputs, and their products `gram` float32 [stop - start, stop - start]."""

    start: int
    stop: int
    gram: Tensor


class Gram:
    """Sums over tokens seen so far.

    Attributes:
        blocks: along the diagonal, left to right, each of whole groups.
        magnitude: float32 [K], the sum of |x| of each column.
        tokens: seen.
    """

    def __init__(self, columns: int, group_size: int) -> None:
        """Args: group_size: blocks end where groups end; 0 for none."""
        unit = group_size or columns
        groups = columns // unit
        count = max(1, min(groups, -(-columns // WIDEST)))
        bounds = [round(groups * index / count) * unit for index in range(count)] + [columns]
        self.blocks = tuple(
            Block(start, stop, torch.zeros(stop - start, stop - start)) for start, stop in pairwise(bounds)
        )
        self.magnitude = torch.zeros(columns)
        self.tokens = 0

    def add(self, inputs: Sequence[Tensor], workers: Workers) -> None:
        """Count the tokens of sequences [L, K]. Sequence after sequence: bits depend on no batch."""

        def strip(unit: tuple[Block, int]) -> None:
            block, first = unit
            last = min(first + _STRIP, block.stop - block.start)
            for sequence in inputs:
                columns = sequence[:, block.start : block.stop]
                block.gram[:, first:last].addmm_(columns.T, columns[:, first:last])

        workers.map(strip, [(b, first) for b in self.blocks for first in range(0, b.stop - b.start, _STRIP)])
        for magnitude in workers.map(lambda sequence: sequence.abs().sum(0), inputs):
            self.magnitude += magnitude
        self.tokens += sum(len(sequence) for sequence in inputs)

    @property
    def mean_magnitude(self) -> Tensor:
        """float32 [K], the mean of |x| of each column."""
        return self.magnitude / max(1, self.tokens)

    def loss(self, change: Tensor) -> Tensor:
        """Squared error of the outputs, summed over tokens, for a change [R, K] of R rows: float64 scalar."""
        parts = [
            ((part @ block.gram) * part).sum(dtype=torch.float64)
            for block in self.blocks
            for part in (change[:, block.start : block.stop],)
        ]
        return torch.stack(parts).sum()

    def of_groups(self, group_size: int) -> Tensor:
        """float32 [K / group, group, group]: the part of `blocks` inside each group."""
        return torch.cat([
            block.gram.unflatten(0, (-1, group_size)).unflatten(2, (-1, group_size)).diagonal(dim1=0, dim2=2)
            .permute(2, 0, 1)
            for block in self.blocks
        ])  # fmt: skip
