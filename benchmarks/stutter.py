"""How much running streams stutter while a long prompt comes in: gaps between their tokens, quiet and beside it.

    python -m benchmarks.stutter MODEL [--streams 1 4 16] [--prompt 32000] [--places 5] [--precision w4a16]

One engine paces prompts, another does not; both run the same work in one process. Prints the median and the 99th
percentile of a stream's gaps in milliseconds, and the seconds to the first token of a long prompt.

Quiet steps and steps beside a prompt come in turns, as others on the host take some of the memory's rate, now more and
now less, and steps take longer as the streams' own texts grow. A step beside a prompt is compared with the 99th
percentile of quiet ones: the median of the quiet steps just before and just after, times what that percentile is over
the median in all quiet steps. Of these ratios the 99th percentile is shown. What holds the machine up once a second is
in more than one of a hundred long steps and in fewer of the short ones. So the table also has how often, in a second, a
step takes more than 1.5 times the median: with a prompt and without, that should be the same.

Prompts come until `--steps` have run beside them. With `--places` it is 256 tokens at so many places of the prompt,
from its beginning to its end: keys and values before them are zeros, which take as long to attend to. A whole prompt of
32,000 takes 16,000 steps beside one stream.

With `--processor-time` on one thread, seconds are those in which the process ran: a hint where other work runs.
"""

import argparse
import sys
import time
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from plimsoll.api.precision import HeldCache, Precision
from plimsoll.runtime.engine.core.block_manager import chain_hash, salted_root
from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.machine.heap import keep_what_is_loaded, steady_heap
from tests.support.engines import make_engine, make_request

LONG = 1.5
"""Times the median: a step that took more was held up."""

PLACE = 256
"""Tokens of a prompt that are measured at one place."""

QUIET = 50
"""Quiet steps at least between two prompts."""


@dataclass
class Gaps:
    """Seconds of steps in turns: quiet ones come before each prompt and after the last."""

    quiet: list[list[float]] = field(default_factory=list)
    beside: list[list[float]] = field(default_factory=list)

    def spread(self) -> float:
        """The 99th percentile of quiet steps over the median of those beside them."""
        return float(np.percentile([step / float(np.median(turn)) for turn in self.quiet for step in turn], 99))

    def ratios(self, places: int = 1, place: int = 0) -> list[float]:
        """Steps beside each prompt at `place` of so many, over the 99th percentile of the quiet ones next to it."""
        spread, medians = self.spread(), [float(np.median(turn)) for turn in self.quiet]
        return [
            step / (spread * (medians[at] + medians[at + 1]) / 2)
            for at in range(place, len(self.beside), places)
            for step in self.beside[at]
        ]


def measure(engine: Engine, streams: int, label: str, given: argparse.Namespace) -> Gaps:
    """Runs streams alone and beside long prompts, in turns, until there were steps enough."""
    for stream in range(streams):
        ids = [(11 * at + 37 * stream) % 40000 + 3 for at in range(100)]
        engine.add(make_request(f"{label}-{stream}", ids, given.tokens, cache_salt=f"{label}-{stream}"))
    while engine.scheduler.waiting or any(seq.num_pending > 1 for seq in engine.scheduler.running):
        engine.step()
    found = Gaps()
    ids = [(7919 * at) % 40000 + 3 for at in range(given.prompt)]
    places = np.linspace(0, given.prompt - PLACE, given.places).astype(int).tolist() if given.places else [0]
    while len(flat(found.beside)) < given.steps or len(found.beside) % len(places):
        found.quiet.append(_quiet(engine, found, given))
        name = f"{label}-long-{len(found.beside)}"
        begun = places[len(found.beside) % len(places)]
        begin(engine, ids[:begun], name)
        engine.add(make_request(name, ids[: begun + PLACE] if given.places else ids, 1, cache_salt=name))
        found.beside.append([])
        done = False
        while not done:
            seconds, done = _timed(engine, name)
            found.beside[-1].append(seconds)
        if not engine.config.paced and len(found.beside) % len(places) == 0:
            break
    found.quiet.append(_quiet(engine, found, given))
    if len(engine.scheduler.running) < streams:
        sys.exit("a stream ended before the prompts did: give it more --tokens")
    engine.abort([f"{label}-{stream}" for stream in range(streams)])
    engine.step()
    return found


def _quiet(engine: Engine, found: Gaps, given: argparse.Namespace) -> list[float]:
    """About as many steps as the last prompt took."""
    count = len(found.beside[-1]) if found.beside else given.steps // 2
    return [_timed(engine)[0] for _ in range(min(max(count, QUIET), given.steps // 2))]


def flat(turns: Items[Items[float]]) -> list[float]:
    return [step for turn in turns for step in turn]


def held_up(turns: Items[Items[float]]) -> float:
    """Long steps a second."""
    return sum(step > LONG * float(np.median(turn)) for turn in turns for step in turn) / sum(flat(turns))


def begin(engine: Engine, ids: list[int], salt: str) -> None:
    """Lets the prefix cache know the full blocks of `ids`. No keys and values are computed for them; their memory is
    written, as reading what was never written takes the system no memory."""
    blocks, parent = engine.scheduler.blocks, salted_root(salt)
    size = blocks.block_size
    table = blocks.allocate(len(ids) // size)
    for index, block in enumerate(table):
        parent = chain_hash(parent, ids[index * size : (index + 1) * size])
        blocks.publish(block, parent)
    if table:
        engine.runner.clear_blocks(table)
    blocks.release(table)


def _timed(engine: Engine, ends: str = "") -> tuple[float, bool]:
    start = time.perf_counter()
    outputs = engine.step()
    return time.perf_counter() - start, any(output.request_id == ends for output in outputs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--prompt", type=int, default=8000)
    parser.add_argument("--places", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--paced-only", action="store_true")
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--precision", default="auto", choices=["auto", *get_args(Precision)])
    parser.add_argument("--cache", default="auto", choices=["auto", *get_args(HeldCache)])
    parser.add_argument("--threads", type=int, default=None)
    given = parser.parse_args()
    if given.processor_time:
        if given.threads != 1:
            parser.error("--processor-time: needs --threads 1, as it is that of one thread")
        time.monotonic = time.perf_counter = time.thread_time
    # As an engine's process does.
    steady_heap()
    room = (2 * given.prompt + max(given.streams) * (given.tokens + 200)) * 24_000
    engines = {
        paced: make_engine(
            given.model, num_blocks=1, block_bytes=room, block_size=64, precision=given.precision, paced=paced,
            cache_precision=given.cache, threads=given.threads, memory=16 << 30,
        )
        for paced in ((True,) if given.paced_only else (False, True))
    }  # fmt: skip
    keep_what_is_loaded()
    console = Console(markup=False, emoji=False, width=None if sys.stdout.isatty() else 160)
    table = Table(
        "streams", "prompts", "steps alone, beside", "alone p50, p99", "beside p50, p99", "over p99 alone: p50, p99",
        "long steps/s alone, beside", "first token, s",
    )  # fmt: skip
    for streams in given.streams:
        for paced, engine in engines.items():
            found = measure(engine, streams, f"{streams}-{paced}", given)
            table.add_row(
                f"{streams}", "paced" if paced else "not paced", f"{len(flat(found.quiet))}, {len(flat(found.beside))}",
                shown(flat(found.quiet)), shown(flat(found.beside)), both(found.ratios()),
                f"{held_up(found.quiet):.1f}, {held_up(found.beside):.1f}",
                f"{np.mean([sum(prompt) for prompt in found.beside]):.2f}",
            )  # fmt: skip
            for place in range(given.places):
                steps = flat(found.beside[place :: given.places])
                ratios = both(found.ratios(given.places, place))
                table.add_row("", f"place {place + 1}", f"{len(steps)}", "", shown(steps), ratios)
    console.print(table)
    return 0


def both(ratios: Items[float]) -> str:
    return f"{np.percentile(ratios, 50):.2f}, {np.percentile(ratios, 99):.2f}"


def shown(steps: Items[float]) -> str:
    """Median and 99th percentile in milliseconds."""
    middle, high = np.percentile(steps, (50, 99)) * 1000
    return f"{middle:.1f}, {high:.1f}"


if __name__ == "__main__":
    sys.exit(main())
