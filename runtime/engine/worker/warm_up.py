"""What layers of a prompt take on this machine, measured before the first request comes.

So the first prompt beside a stream is paced like all others, and finds its buffers in memory.
"""

from plimsoll.runtime.engine.core.pace import Pace
from plimsoll.runtime.engine.core.prompt_pass import MOST_ROWS, Part, PromptPass
from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.engine.core.scheduled import Scheduled
from plimsoll.runtime.engine.core.sequence import Sequence
from plimsoll.runtime.engine.worker.runner import Runner

FEW = 2
"""Rows whose time is mostly that of reading the weights."""

LAYERS = 8
"""Layers that few rows run through, so that what it takes to begin a pass does not count."""

ROUNDS = 3
"""Of which the shortest counts: in the first, nothing is in the caches, and buffers are new."""


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
    parts = [_part(_item(rows, size), stop, layers) for rows, stop in ((many, 1), (FEW, min(LAYERS, layers)))]
    rounds: list[list[float]] = []
    for _ in range(ROUNDS):
        rounds.append([])
        for part in parts:
            scheduled = [stream, part.item] if part.whole else [stream]
            rounds[-1].append(runner.step(scheduled, part=part).apart / part.stop)
    runner.clear_blocks(parts[0].item.seq.block_table)
    slow, fast = map(min, zip(*rounds, strict=True))
    pace.start((FEW, fast), (many, slow))


def _item(rows: int, block_size: int) -> Scheduled:
    """A sequence of so many tokens, and one more, at the beginning of the cache."""
    seq = Sequence("", [0] * (rows + 1), SamplingParams(), max_tokens=1, arrival=0.0)
    seq.block_table = list(range(-(-rows // block_size)))
    return Scheduled(seq, rows)


def _part(item: Scheduled, stop: int, layers: int) -> Part:
    """The first layers of a pass."""
    return Part(PromptPass(item), item, 0, stop, stop == layers)
