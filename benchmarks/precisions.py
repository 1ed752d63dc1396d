"""Decode steps at each precision and number of sequences, the engines in turns in one process.

    python -m benchmarks.precisions MODEL [--precisions bfloat16 w4a16] [--sizes 1 4 16] [--threads 2] [--rounds 20]

Prints the twentieth percentile of a step in milliseconds, and the speed over the first precision's.
"""

import argparse
from typing import cast, get_args

from rich.console import Console
from rich.table import Table

from benchmarks.decode_step import drain, fill, timed_steps
from plimsoll.api.precision import Precision
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.engine import Engine

STEPS = 6
"""Of one engine before it is the next one's turn."""
CONTEXT = 200


def measure(engines: dict[Precision, Engine], size: int, rounds: int) -> dict[Precision, float]:
    """Milliseconds of a step with `size` sequences by precision."""
    seconds: dict[Precision, list[float]] = {precision: [] for precision in engines}
    for engine in engines.values():
        fill(engine, size, CONTEXT, STEPS * rounds)
    for _ in range(rounds):
        for precision, engine in engines.items():
            seconds[precision] += timed_steps(engine, STEPS)
    for engine in engines.values():
        drain(engine, size)
    return {precision: sorted(found)[len(found) // 5] * 1000 for precision, found in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "w4a16", "w8a16"], choices=get_args(Precision))
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()
    precisions = [cast(Precision, name) for name in asked.precisions]
    engines = {
        precision: Engine(
            EngineConfig(
                model=asked.model, precision=precision, threads=asked.threads, kv_cache_bytes=1 << 30,
                max_running=max(asked.sizes), prefix_caching=False,
            )
        )
        for precision in precisions
    }  # fmt: skip
    table = Table("sequences", *precisions, title=f"Decode steps, ms, {asked.threads} threads, context {CONTEXT}")
    for size in asked.sizes:
        found = measure(engines, size, asked.rounds)
        first = found[precisions[0]]
        others = (f"{found[precision]:.2f}  {first / found[precision]:.2f} ×" for precision in precisions[1:])
        table.add_row(str(size), f"{first:.2f}", *others)
    Console(markup=False, emoji=False).print(table)


if __name__ == "__main__":
    main()
