"""An engine under load for long: does its memory stay flat, do its books add up, are sampled answers replayed equal?

    python -m benchmarks.soak MODEL [--minutes 60] [--load 0.8] [--cache float int8 int4]

Talks come back with prompts of several lengths, greedy and seeded, in two priorities; clients hang up; the cache is so
small that requests are preempted and blocks go to a host tier and come back; prompts are paced and tokens guessed.
The engine is busy for `--load` of the time. Its books are checked after every step, and an answer that was given before
must be the same again. Prints a line a minute; exits 1 where an answer differs, or where memory grows by more than 2 %
after a tenth of the time.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import psutil

from plimsoll.api.precision import HeldCache
from plimsoll.api.sizes import block_bytes
from plimsoll.checkpoint import open_checkpoint
from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.messages import EngineRequest
from tests.support.engines import make_engine, make_request

TALKS, MOST_AT_ONCE, BLOCK, MODEL_LEN = 40, 12, 16, 512
GROWTH = 1.02


class Soak:
    """One engine, what its requests said, and what went wrong."""

    def __init__(self, model: Path, cache: HeldCache, seed: int) -> None:
        block = block_bytes(open_checkpoint(model).facts, BLOCK, "bfloat16", cache)
        self.engine: Engine = make_engine(
            model, num_blocks=60, block_bytes=block, block_size=BLOCK, precision="auto", cache_precision=cache,
            host_memory=200 * block, max_model_len=MODEL_LEN, max_batched_tokens=256, speculative_tokens=3, paced=True,
        )  # fmt: skip
        self.draw = random.Random(seed)
        self.talks = [[self.draw.randrange(3, 2000) for _ in range(240)] for _ in range(TALKS)]
        self.said: dict[tuple[int, ...], list[int]] = {}
        self.live: dict[str, tuple[tuple[int, ...], list[int]]] = {}
        self.requests = self.aborted = self.replayed = self.different = 0

    def arrive(self) -> None:
        """One more request, if there is room; now and then a client hangs up."""
        draw = self.draw
        if len(self.live) < MOST_AT_ONCE and draw.random() < 0.5:
            talk, length, most = draw.randrange(TALKS), draw.choice((40, 120, 240)), draw.choice((10, 60, 200))
            request = self.request(talk, length, most)
            self.live[request.request_id] = ((talk, length, most), [])
            self.engine.add(request)
        if self.live and draw.random() < 0.01:
            self.engine.abort([draw.choice(sorted(self.live))])
            self.aborted += 1

    def request(self, talk: int, length: int, most: int) -> EngineRequest:
        self.requests += 1
        sampled: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "seed": talk} if talk % 2 else {}
        priority = self.draw.choice((0, 0, 1))
        return make_request(self.requests, self.talks[talk][:length], most, priority=priority, **sampled)

    def step(self) -> None:
        for output in self.engine.step():
            asked, tokens = self.live[output.request_id]
            tokens += output.token_ids
            if output.error is not None:
                raise RuntimeError(f"request {output.request_id}: {output.error}")
            if output.finish_reason is None:
                continue
            del self.live[output.request_id]
            if output.finish_reason != "length":
                continue
            self.replayed += asked in self.said
            self.different += self.said.setdefault(asked, tokens) != tokens
        self.engine.check_integrity()


def run(soak: Soak, seconds: float, load: float) -> Iterator[int]:
    """Turns the engine for so long; yields the process's resident bytes a minute."""
    process, start, busy, printed = psutil.Process(), time.monotonic(), 0.0, 0
    while (now := time.monotonic()) - start < seconds or soak.engine.has_work:
        if now - start < seconds:
            soak.arrive()
        soak.step()
        busy += time.monotonic() - now
        time.sleep(max(0.0, busy / load - (time.monotonic() - start)))
        if (time.monotonic() - start) // 60 >= printed:
            printed += 1
            yield process.memory_info().rss


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--load", type=float, default=0.8)
    parser.add_argument("--cache", nargs="+", default=["float"], choices=get_args(HeldCache))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    wrong = False
    for cache in given.cache:
        soak, resident = Soak(given.model, cache, given.seed), []
        for now in run(soak, 60 * given.minutes, given.load):
            resident.append(now)
            stats = soak.engine.stats
            print(
                f"{cache}, minute {len(resident) - 1}: {now / 2**20:.0f} MiB, {soak.requests} requests, {soak.aborted} "
                f"aborted, {stats.preemptions} preempted, {stats.host_saved} blocks saved, {stats.host_loaded} loaded, "
                f"{stats.prefix_hits} of {stats.prefix_queries} prompt tokens cached, {stats.guesses_kept} of "
                f"{stats.guesses} guesses kept, {soak.replayed} answers replayed, {soak.different} different",
                flush=True,
            )
        settled = resident[len(resident) // 10]
        grown = max(resident[len(resident) // 10 :]) > GROWTH * settled
        wrong |= grown or soak.different > 0 or not soak.replayed
        print(f"{cache}: memory {'GREW' if grown else 'stayed flat'}, {soak.different} answers different")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
