"""What layers of a prompt take on this machine, measured before the first request comes.

So the first prompt beside a stream is paced like all others, and finds its buffers in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from plimsoll.runtime.engine.core.pace import Pace
from plimsoll.runtime.engine.core.prompt_pass import MOST_ROWS
from plimsoll.runtime.engine.worker.runner import Runner

FEW = 2
"""Rows whose time is mostly that of reading the weights."""

LAYERS = 8
"""Layers that few rows run through, so that what it takes to begin a pass does not count."""

ROUNDS = 3
"""Of which the shortest counts: in the first, nothing is in the caches, and buffers are new."""


@dataclass(frozen=True)
class _Rows:
    """A sequence of so many tokens, and one more, at the beginning of the cache."""

    token_ids: list[int]
    block_table: list[int]
    num_computed: int = 0


@dataclass(frozen=True)
class _Item:
    seq: _Rows
    num_new_tokens: int
    guesses: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Part:
    """The first layers of a pass."""

    item: _Item
    stop: int
    whole: bool
    first: int = 0


def measure_layers(runner: Runner, pace: Pace, most: int) -> None:
    """Lets `pace` know what the model's first layers take of few rows and of many, beside a stream.

    Args:
        runner: with nothing in its cache; the blocks that are written are cleared.
        most: rows of a step, at least 1, and of a sequence.
    """
    size = runner.cache.block_size
    many = min(MOST_ROWS - 1, most - 1, runner.cache.num_blocks * size)
    if many <= FEW:
        return
    stream, layers = _item(1, size), len(pace.work.windows)
    parts = [_Part(_item(rows, size), stop, stop == layers) for rows, stop in ((many, 1), (FEW, min(LAYERS, layers)))]
    rounds: list[list[float]] = []
    for _ in range(ROUNDS):
        rounds.append([])
        for part in parts:
            scheduled: Sequence[_Item] = [stream, part.item] if part.whole else [stream]
            rounds[-1].append(runner.step(scheduled, part=part).apart / part.stop)
    runner.clear_blocks(parts[0].item.seq.block_table)
    slow, fast = map(min, zip(*rounds, strict=True))
    pace.start((FEW, fast), (many, slow))


def _item(rows: int, block_size: int) -> _Item:
    return _Item(_Rows([0] * (rows + 1), list(range(-(-rows // block_size)))), rows)
