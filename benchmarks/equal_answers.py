"""Whether answers of a real model depend on what else runs: 64 requests alone, in crowds, in chunks, from prefixes.

    python -m benchmarks.equal_answers MODEL [--precision bfloat16 w8a16 w4a16] [--cache float int8 int4]

Half of the requests are greedy and half seeded, a third share a long beginning. Token ids and log-probabilities are
compared without rounding. Prints how many of the 64 differ from what they are alone; exits 1 if one does.
"""

import argparse
import hashlib
import random
import sys
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from plimsoll.api.precision import HeldCache, Precision
from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.messages import EngineRequest
from tests.support.engines import make_engine, make_request, run, run_alone

MODEL_LEN = 1024
POOL = 512 << 20
#: Sequences at once, tokens of a step at most, whether prefixes are kept.
SETTINGS = {
    "4 at once": (4, 2048, False),
    "16 at once": (16, 2048, False),
    "48 at once": (48, 2048, False),
    "48 at once, steps of 32": (48, 32, False),
    "16 at once, steps of 300": (16, 300, False),
    "16 at once, prefixes kept": (16, 512, True),
}


def requests(count: int, tokens: int) -> list[EngineRequest]:
    asked = []
    for name in range(count):
        length = (1, 7, 33, 64, 100, 250, 511, 600)[name % 8] + name
        prompt = [3 + (7919 * (name if at >= 192 or name % 3 else 0) + 104729 * at) % 40000 for at in range(length)]
        params: dict[str, Any] = {"temperature": 0.9, "seed": name} if name % 2 else {}
        asked.append(make_request(name, prompt, tokens, logprobs=2, **params))
    return asked


def answers(engine: Engine, order: list[EngineRequest], alone: bool = False) -> dict[str, str]:
    found = {r.request_id: run_alone(engine, r) for r in order} if alone else run(engine, order)
    failed = [result.error for result in found.values() if result.error]
    if failed:
        raise RuntimeError(f"requests failed: {failed[0]}")
    return {name: repr((result.token_ids, result.logprobs)) for name, result in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--precision", nargs="+", default=["bfloat16", "w8a16", "w4a16"], choices=get_args(Precision))
    parser.add_argument("--cache", nargs="+", default=[*get_args(HeldCache)], choices=get_args(HeldCache))
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=24)
    given = parser.parse_args()
    console = Console(markup=False, emoji=False, width=None if sys.stdout.isatty() else 140)
    table = Table("weights", "cache", "kernels", *SETTINGS, "preempted", "digest of the answers")
    different = 0
    for precision in given.precision:
        for cache in given.cache:
            common: dict[str, Any] = {"precision": precision, "cache_precision": cache, "max_model_len": MODEL_LEN}
            order = requests(given.requests, given.tokens)
            engine = make_engine(given.model, num_blocks=1, block_bytes=POOL, prefix_caching=False, **common)
            wanted, kernels = answers(engine, order, alone=True), engine.ready.kernels
            shape = engine.runner.cache
            block_bytes = POOL // shape.num_blocks
            random.Random(1).shuffle(order)
            cells = []
            for at_once, step, kept in SETTINGS.values():
                engine = make_engine(
                    given.model, num_blocks=1, block_bytes=POOL, prefix_caching=kept, max_running=at_once,
                    max_batched_tokens=step, **common,
                )  # fmt: skip
                found = answers(engine, order)
                if kept:
                    found = answers(engine, order)
                cells.append(sum(found[name] != wanted[name] for name in wanted))
            # Blocks for little more than one request of the greatest length.
            blocks = MODEL_LEN // shape.block_size + 4
            engine = make_engine(given.model, num_blocks=blocks, block_bytes=block_bytes, **common)
            found = answers(engine, order)
            cells.append(sum(found[name] != wanted[name] for name in wanted))
            preempted = f"{cells[-1]} ({engine.stats.preemptions} times)"
            different += sum(cells)
            digest = hashlib.sha256("".join(wanted[str(n)] for n in range(given.requests)).encode()).hexdigest()[:12]
            table.add_row(precision, cache, kernels, *map(str, cells[:-1]), preempted, digest)
            console.print(f"{precision}, {cache}: {sum(cells)} different", style="dim")
    console.print(table)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
