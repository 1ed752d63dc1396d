"""How much running streams stutter while a long prompt comes in: gaps between their tokens, quiet and beside it.

    python -m benchmarks.stutter MODEL [--streams 1 4 16] [--prompt 8000] [--begun 31000] [--precision w4a16]

One engine paces prompts, another does not; both run the same work in turns in one process. Prints the median and the
99th percentile of a stream's gaps in milliseconds, and the seconds to the first token of the long prompt. The streams
are alone before and after the prompt, as their steps take longer the longer their own texts are; ratios are over the
mean of the two.

With `--begun` so many tokens of the prompt are taken to be computed: their keys and values are what memory held, which
take as long to attend to. So the end of a prompt of 32,000 is measured before the streams' own texts have grown long.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from plimsoll.runtime.engine.core.block_manager import chain_hash, salted_root
from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.machine.heap import keep_what_is_loaded
from tests.support.engines import make_engine, make_request

QUIET_STEPS = 100


def gaps(engine: Engine, streams: int, prompt: int, begun: int, label: str) -> dict[str, Any]:
    """Seconds between steps of the streams alone before and after the prompt, and while it is computed; seconds to its
    first token."""
    for stream in range(streams):
        ids = [(11 * at + 37 * stream) % 40000 + 3 for at in range(100)]
        engine.add(make_request(f"{label}-{stream}", ids, 4000, cache_salt=f"{label}-{stream}"))
    while engine.scheduler.waiting or any(seq.num_pending > 1 for seq in engine.scheduler.running):
        engine.step()
    before = [_timed(engine)[0] for _ in range(QUIET_STEPS)]
    ids = [(7919 * at) % 40000 + 3 for at in range(prompt)]
    begin(engine, ids[:begun], label)
    engine.add(make_request(f"{label}-long", ids, 1, cache_salt=label))
    beside: list[float] = []
    done = False
    while not done:
        seconds, done = _timed(engine, f"{label}-long")
        beside.append(seconds)
    after = [_timed(engine)[0] for _ in range(QUIET_STEPS)]
    engine.abort([f"{label}-{stream}" for stream in range(streams)])
    engine.step()
    return {"before": before, "after": after, "beside": beside, "first": sum(beside)}


def begin(engine: Engine, ids: list[int], salt: str) -> None:
    """Lets the prefix cache know the full blocks of `ids`. No keys and values are computed for them."""
    blocks, parent = engine.scheduler.blocks, salted_root(salt)
    size = blocks.block_size
    table = blocks.allocate(len(ids) // size)
    for index, block in enumerate(table):
        parent = chain_hash(parent, ids[index * size : (index + 1) * size])
        blocks.publish(block, parent)
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
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--cache", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    given = parser.parse_args()
    room = (given.prompt + max(given.streams) * 4200) * 24_000
    engines = {
        paced: make_engine(
            given.model, num_blocks=1, block_bytes=room, block_size=64, precision=given.precision, paced=paced,
            cache_precision=given.cache, threads=given.threads, memory=16 << 30,
        )
        for paced in (False, True)
    }  # fmt: skip
    # As an engine's process does.
    keep_what_is_loaded()
    console = Console(markup=False, emoji=False, width=None if sys.stdout.isatty() else 140)
    table = Table(
        "streams", "prompts", "alone before p50, p99", "alone after", "beside", "ratio of p99", "first token, s"
    )
    for streams in given.streams:
        for paced, engine in engines.items():
            found = gaps(engine, streams, given.prompt, given.begun, f"{streams}-{paced}")
            shown = {what: np.percentile(found[what], (50, 99)) * 1000 for what in ("before", "after", "beside")}
            alone = (shown["before"][1] + shown["after"][1]) / 2
            table.add_row(
                f"{streams}", "paced" if paced else "not paced",
                *(f"{middle:.1f}, {high:.1f}" for middle, high in shown.values()),
                f"{shown['beside'][1] / alone:.2f}", f"{found['first']:.2f}",
            )  # fmt: skip
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
