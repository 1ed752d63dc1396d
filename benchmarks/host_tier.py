"""Conversations that come back, and requests that are preempted, with a host tier and without, in turns.

python -m benchmarks.host_tier MODEL [--precision bfloat16] [--length 2000] [--conversations 4] [--rounds 3]

Both engines have a first tier for little more than one conversation; answers must be the same to the bit.
"""

import argparse
import statistics
import time
from typing import get_args

from plimsoll.api.precision import Precision
from plimsoll.api.quantity import format_bytes
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.messages import EngineRequest

BLOCK, ANSWER = 64, 32


def request(name: str, prompt: list[int], tokens: int) -> EngineRequest:
    params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    return EngineRequest(request_id=name, prompt_token_ids=prompt, params=params, arrival=time.monotonic())


def answers(engine: Engine, requests: list[EngineRequest]) -> tuple[dict[str, list[int]], float, float]:
    """(token ids of each, seconds until the first token of any, seconds in all)."""
    started, first = time.perf_counter(), 0.0
    found: dict[str, list[int]] = {one.request_id: [] for one in requests}
    for one in requests:
        engine.add(one)
    while engine.has_work:
        for output in engine.step():
            found[output.request_id] += output.token_ids
            first = first or time.perf_counter() - started
    return found, first, time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--precision", default="bfloat16", choices=get_args(Precision))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--length", type=int, default=2000)
    parser.add_argument("--conversations", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    probe = Engine(EngineConfig(model=options.model, precision=options.precision, memory=4 << 30, block_size=BLOCK))
    block = probe.ready.observed["kvCache"] // probe.ready.num_blocks
    del probe
    each = -(-(options.length + ANSWER) // BLOCK)
    engines = [
        Engine(
            EngineConfig(
                model=options.model, precision=options.precision, threads=options.threads, memory=8 << 30,
                kv_cache_bytes=(each + 8) * block, block_size=BLOCK, host_memory=slots * block,
            )
        )
        for slots in (0, 2 * options.conversations * each)
    ]  # fmt: skip
    prompts = [
        [3 + (7919 * talk + 31 * at) % 1000 for at in range(options.length)] for talk in range(options.conversations)
    ]
    times: tuple[list[float], list[float]] = [], []
    crowds: tuple[list[float], list[float]] = [], []
    differ = 0
    for turn in range(options.rounds + 1):
        for talk, prompt in enumerate(prompts):
            said = []
            for engine, seconds in zip(engines, times, strict=True):
                found, first, _ = answers(engine, [request(f"{turn}-{talk}", prompt, ANSWER)])
                said.append(found)
                if turn:
                    seconds.append(first)
            differ += said[0] != said[1]
    half = options.length // 2
    for turn in range(options.rounds):
        said = []
        for engine, seconds in zip(engines, crowds, strict=True):
            crowd = [
                request(f"{turn}-{talk}", [5 + turn, *prompt[: half - 1]], half) for talk, prompt in enumerate(prompts)
            ]
            found, _, took = answers(engine, crowd)
            said.append(found)
            seconds.append(took)
        differ += said[0] != said[1]
    copying = engines[1]._copy_times
    print(f"a block: {format_bytes(block)}, copied one way in {1e3 * copying.seconds_a_block:.2f} ms; prompts at "
          f"{copying.tokens_a_second:.0f} tokens/s: {1e3 * BLOCK / copying.tokens_a_second:.1f} ms")  # fmt: skip
    for name, pair in (("first token of a conversation that comes back", times), ("a crowd that is preempted", crowds)):
        one, other = (statistics.median(seconds) for seconds in pair)
        print(f"{name}: {one:.3f} s without, {other:.3f} s with a host tier")
    for engine in engines:
        stats = engine.stats
        print(f"preemptions {stats.preemptions}, saved {stats.host_saved}, loaded {stats.host_loaded} blocks, "
              f"prompt tokens found {stats.prefix_hits} of {stats.prefix_queries}")  # fmt: skip
        engine.check_integrity()
        engine.close()
    print(f"{differ} answers differ")
    return 1 if differ else 0


if __name__ == "__main__":
    raise SystemExit(main())
