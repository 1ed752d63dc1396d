"""A layer's quantization by one process with N threads and by N processes with one thread each, in turns.

    python -m benchmarks.quantize_workers MODEL [--workers 2] [--samples 8] [--length 256] [--layers 2] [--rounds 3]

MODEL is a folder or a GGUF file. Prints what a layer's time is made of with one thread, then the seconds of a layer for
each way, the best of all rounds, and their ratio. Exits 1 where the bytes differ. Leave the machine alone meanwhile:
each line names the share of the processors' time that went to others.
"""

import argparse
import hashlib
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from plimsoll.checkpoint import open_checkpoint
from plimsoll.quantjob import layer_quantizer
from plimsoll.quantjob.coding import Coder
from plimsoll.quantjob.crew import Crew
from plimsoll.quantjob.data import Tokens, tokens_of
from plimsoll.quantjob.gram import Gram
from plimsoll.quantjob.recipe import Recipe
from plimsoll.quantjob.search import Judge
from plimsoll.quantjob.walk import Walk, WalkPlan
from plimsoll.quantjob.workers import Workers

#: What of a layer is timed, by what people call it.
PARTS: dict[str, list[tuple[Any, str]]] = {
    "search of scales": [(Judge, "__call__")],
    "ranges": [(Coder, "_grids")],
    "codes": [(Coder, "__call__")],
    "passes over the text": [(layer_quantizer.LayerQuantizer, "_inputs")],
    "second moments": [(Gram, "add")],
}


class EnoughError(Exception):
    """As many layers as are timed."""


def timed(model: Path, tokens: Tokens, group: int, layers: int, size: int, threads: int) -> tuple[list[float], str]:
    """Seconds of each layer by `size` processes with `threads` in all, and a digest of what they wrote."""
    workers = Workers(threads)
    crew = Crew(size, workers)
    clock: list[float] = []

    def on_layer(done: int, of: int, seconds: float) -> None:
        clock.append(time.perf_counter())
        if done == layers + 1:
            raise EnoughError

    with tempfile.TemporaryDirectory(prefix="plimsoll-workers-") as scratch:
        recipe = Recipe(group_size=group, format="compressed-tensors")
        walk = Walk(open_checkpoint(model), recipe, tokens, Path(scratch), WalkPlan(2 * threads), workers, crew=crew)
        try:
            walk.run(on_layer)
        except EnoughError:
            pass
        finally:
            crew.rest()
            workers.close()
        written = hashlib.sha256()
        for path in sorted((Path(scratch) / "output").iterdir()):
            written.update(path.read_bytes())
    # The first layer waits for the others to start.
    return [after - before for before, after in pairwise(clock[1:])], written.hexdigest()


def watched(work: Callable[[], tuple[list[float], str]], threads: int) -> tuple[float, str, float]:
    """(seconds of a layer, digest, share of the processors' time that others took)."""
    me = psutil.Process()

    def own() -> float:
        return sum(getattr(me.cpu_times(), name) for name in ("user", "system", "children_user", "children_system"))

    def busy() -> float:
        now = psutil.cpu_times()
        return now.user + now.system + now.nice

    before, mine, began = busy(), own(), time.perf_counter()
    seconds, digest = work()
    spent = time.perf_counter() - began
    others = max(0.0, (busy() - before) - (own() - mine)) / (spent * psutil.cpu_count())
    return min(seconds), digest, others


def parts(work: Callable[[], tuple[list[float], str]], layers: int) -> None:
    """Print what one layer is made of, in seconds."""
    spent: dict[str, float] = defaultdict(float)
    kept = []
    for name, places in PARTS.items():
        for owner, method in places:
            whole = getattr(owner, method)
            kept.append((owner, method, whole))

            def around(*values: Any, whole: Any = whole, name: str = name, **more: Any) -> Any:
                began = time.perf_counter()
                try:
                    return whole(*values, **more)
                finally:
                    spent[name] += time.perf_counter() - began

            setattr(owner, method, around)
    try:
        seconds, _ = work()
    finally:
        for owner, method, whole in kept:
            setattr(owner, method, whole)
    spent["codes"] -= spent["ranges"]
    average = {name: value / (layers + 1) for name, value in spent.items()}
    whole = sum(seconds) / len(seconds)
    words = ", ".join(f"{name} {value:.2f} ({value / whole:.0%})" for name, value in average.items())
    print(f"a layer by one thread: {whole:.2f} s: {words}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    for name, value in {"workers": 2, "group": 64, "samples": 8, "length": 256, "layers": 2, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args()
    facts = open_checkpoint(asked.model).facts
    ids = np.random.default_rng(0).integers(0, facts.vocab_size, (asked.samples, asked.length))
    tokens = tokens_of(ids, "random")

    def way(size: int, threads: int) -> Callable[[], tuple[list[float], str]]:
        return lambda: timed(asked.model, tokens, asked.group, asked.layers, size, threads)

    parts(way(1, 1), asked.layers)
    count = asked.workers
    ways = {f"one process, {count} threads": way(1, count), f"{count} processes, one thread each": way(count, count)}
    best = dict.fromkeys(ways, float("inf"))
    digests = set()
    for _ in range(asked.rounds):
        for name, work in ways.items():
            seconds, digest, others = watched(work, count)
            best[name] = min(best[name], seconds)
            digests.add(digest)
            print(f"{name}: {seconds:.2f} s a layer; others took {others:.0%} of the processors", flush=True)
    first, second = best.values()
    print(f"best: {first:.2f} s and {second:.2f} s a layer: {first / second:.2f} times as fast with {count} processes; "
          f"{'the same bytes' if len(digests) == 1 else 'NOT THE SAME BYTES'}")  # fmt: skip
    return len(digests) - 1


if __name__ == "__main__":
    sys.exit(main())
