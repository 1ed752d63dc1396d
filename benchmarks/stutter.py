"""How much running streams stutter while a long prompt comes in: gaps between their tokens, quiet and beside it.

    python -m benchmarks.stutter MODEL [--streams 1 4 16] [--prompt 8000] [--begun 31000] [--precision w4a16]

One engine paces prompts, another does not; both run the same work in turns in one process. Prints the median and the
99th percentile of a stream's gaps in milliseconds, and the seconds to the first token of a long prompt. The streams
are alone before and after the prompts, as their steps take longer the longer their own texts are: each step beside a
prompt is compared with what lies between the two, as far on as it is, and of these ratios the 99th percentile is shown.

A percentile means something where there are steps enough: prompts come one after another until `--steps` have run
beside them, and about as many quiet ones run in all. What holds the machine up once a second is in more than one of a
hundred long steps and in fewer of the short ones. So the table also has how often, in a second, a step takes more than
1.5 times the median: with a prompt and without, that should be the same.

With `--begun` so many tokens of the prompt are taken to be computed: their keys and values are zeros, which take as
long to attend to. So the end of a prompt of 32,000 is measured before the streams' own texts have grown long. A whole
one takes 16,000 steps beside one stream, so `--tokens 20000` of it; `--quarters` shows the four parts of a prompt.

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

PARTS = 4


@dataclass
class Gaps:
    """Seconds of steps."""

    before: list[float]
    after: list[float] = field(default_factory=list)
    beside: list[list[float]] = field(default_factory=list)
    """Of each prompt."""

    @property
    def steps(self) -> list[float]:
        return [seconds for prompt in self.beside for seconds in prompt]

    def ratios(self, part: int | None = None) -> list[float]:
        """Steps beside prompts, all or those of each one's quarter `part`, over the 99th percentile of quiet steps."""
        first, last = (float(np.percentile(quiet, 99)) for quiet in (self.before, self.after))
        alone = iter(np.linspace(first, last, len(self.steps)).tolist())
        prompts = [[seconds / next(alone) for seconds in prompt] for prompt in self.beside]
        return [step for prompt in prompts for step in (prompt if part is None else quarter(prompt, part))]


def quarter(steps: list[float], part: int) -> list[float]:
    return steps[part * len(steps) // PARTS : (part + 1) * len(steps) // PARTS]


def measure(engine: Engine, streams: int, label: str, given: argparse.Namespace) -> Gaps:
    """Runs streams alone, beside long prompts until there were steps enough, and alone again."""
    for stream in range(streams):
        ids = [(11 * at + 37 * stream) % 40000 + 3 for at in range(100)]
        engine.add(make_request(f"{label}-{stream}", ids, given.tokens, cache_salt=f"{label}-{stream}"))
    while engine.scheduler.waiting or any(seq.num_pending > 1 for seq in engine.scheduler.running):
        engine.step()
    found = Gaps([_timed(engine)[0] for _ in range(given.steps // 2)])
    ids = [(7919 * at) % 40000 + 3 for at in range(given.prompt)]
    while len(found.steps) < given.steps:
        name = f"{label}-long-{len(found.beside)}"
        begin(engine, ids[: given.begun], name)
        engine.add(make_request(name, ids, 1, cache_salt=name))
        found.beside.append([])
        done = False
        while not done:
            seconds, done = _timed(engine, name)
            found.beside[-1].append(seconds)
        if not engine.config.paced:
            break
    found.after = [_timed(engine)[0] for _ in range(given.steps // 2)]
    if len(engine.scheduler.running) < streams:
        sys.exit("a stream ended before the prompts did: give it more --tokens")
    engine.abort([f"{label}-{stream}" for stream in range(streams)])
    engine.step()
    return found


def held_up(steps: Items[float], seconds: float) -> float:
    """Long steps in each of so many seconds."""
    middle = float(np.median(steps))
    return sum(step > LONG * middle for step in steps) / seconds


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
    parser.add_argument("--begun", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--quarters", action="store_true")
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
        "streams", "prompts", "steps alone, beside", "alone before p50, p99", "alone after", "beside",
        "over p99 alone: p50, p99", "long steps/s before, after, beside", "first token, s",
    )  # fmt: skip
    for streams in given.streams:
        for paced, engine in engines.items():
            found = measure(engine, streams, f"{streams}-{paced}", given)
            alone = len(found.before) + len(found.after)
            table.add_row(
                f"{streams}", "paced" if paced else "not paced", f"{alone}, {len(found.steps)}",
                shown(found.before), shown(found.after), shown(found.steps), both(found.ratios()),
                ", ".join(f"{held_up(*steps):.1f}" for steps in (
                    (found.before, sum(found.before)), (found.after, sum(found.after)),
                    (found.ratios(), sum(found.steps)),
                )),
                f"{np.mean([sum(prompt) for prompt in found.beside]):.2f}",
            )  # fmt: skip
            for part in range(PARTS if given.quarters else 0):
                ratios, steps = found.ratios(part), [step for one in found.beside for step in quarter(one, part)]
                table.add_row(
                    "", f"quarter {part + 1}", f"{len(steps)}", "", "", shown(steps),
                    both(ratios),
                )  # fmt: skip
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
