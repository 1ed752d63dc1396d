"""Where the time of one decode step goes: timers around every op of the kernel table, and around what surrounds it.

The ops are run one by one for that. A step as it is served has all layers in one call where the table can, and is timed
beside them.

Arguments: model, workload (not read), threads, output. Run in a process of its own.
"""

import dataclasses
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.messages import EngineRequest
from plimsoll.runtime.models.decoder import Decoder

CONTEXT = 200
STEPS = 40
BATCHES = (1, 16)


class Clock:
    """Seconds by name, added up while it runs."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)

    def around(self, call: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = call(*arguments, **options)
            self.spent[name(*arguments)] += time.perf_counter() - start
            return result

        return timed


def profile(model: Path, threads: int) -> dict[str, Any]:
    """Milliseconds of a decode step by part, for each of `BATCHES`, at a context of about `CONTEXT` tokens."""
    config = EngineConfig(model=str(model), threads=threads, kv_cache_bytes=1 << 30, prefix_caching=False)
    engine = Engine(config)
    decoder, step, sample = engine.runner.decoder, engine.runner.step, engine.sampler.sample
    plain = decoder.kernels
    found: dict[str, Any] = {"kernels": engine.ready.kernels, "precision": engine.ready.precision}
    found |= {"context": CONTEXT, "batches": {}}
    for size in BATCHES:
        fill(engine, size, CONTEXT - STEPS, 5 * STEPS)
        whole = median(timed_steps(engine, STEPS))
        at_once, decoder.run_layers = decoder.run_layers, None
        one_by_one = median(timed_steps(engine, STEPS))
        clock = Clock()
        decoder.kernels = _timed_table(decoder, clock)
        engine.runner.step = clock.around(step, lambda *_: "forward")  # type: ignore[method-assign]
        engine.sampler.sample = clock.around(sample, lambda *_: "sampling")  # type: ignore[method-assign]
        total = sum(timed_steps(engine, STEPS))
        decoder.kernels, decoder.run_layers = plain, at_once
        engine.runner.step, engine.sampler.sample = step, sample  # type: ignore[method-assign]
        spent = {name: seconds / STEPS * 1000 for name, seconds in clock.spent.items()}
        forward = spent.pop("forward")
        spent["around the ops"] = forward - sum(ms for name, ms in spent.items() if name != "sampling")
        spent["scheduling and books"] = total / STEPS * 1000 - forward - spent["sampling"]
        found["batches"][str(size)] = {"step": whole * 1000, "one_by_one": one_by_one * 1000, "parts": spent}
        drain(engine, size)
    return found


def fill(engine: Engine, size: int, context: int, steps: int) -> None:
    """`size` requests of `context` tokens in decode, none within `steps` steps of its end."""
    params = SamplingParams(temperature=0.0, max_tokens=steps + 64, ignore_eos=True)
    vocabulary = engine.facts.vocab_size
    for index in range(size):
        tokens = [(7 * position + 131 * index) % (vocabulary - 1000) + 500 for position in range(context)]
        request = EngineRequest(
            request_id=str(index), prompt_token_ids=tokens, params=params, arrival=time.monotonic()
        )  # fmt: skip
        engine.add(request)
    while engine.stats.waiting or engine.stats.last_step_tokens != size:
        engine.step()
    timed_steps(engine, 3)


def timed_steps(engine: Engine, count: int) -> list[float]:
    """Seconds of each."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - start)
    return seconds


def drain(engine: Engine, size: int) -> None:
    """Ends what `fill` began."""
    engine.abort([str(index) for index in range(size)])
    while engine.has_work:
        engine.step()
    engine.take_times()


def _timed_table(decoder: Decoder, clock: Clock) -> Any:
    """The decoder's table with a timer around each op; matmuls are told apart by their weight."""
    weights = {id(decoder.head): "head"}
    for layer in decoder.layers:
        for part in ("qkv", "output", "gate_up", "down"):
            weights[id(getattr(layer, part))] = part
    names: dict[str, Callable[..., str]] = {"linear": lambda x, weight, bias: weights[id(weight)]}
    for op in ("embedding", "activate", "rope", "write_kv", "attention"):
        names[op] = lambda *_, op=op: op
    names["rms_norm"] = names["add_rms_norm"] = lambda *_: "norms"
    table = decoder.kernels
    return dataclasses.replace(table, **{op: clock.around(getattr(table, op), name) for op, name in names.items()})


if __name__ == "__main__":
    Path(sys.argv[4]).write_text(json.dumps(profile(Path(sys.argv[1]), int(sys.argv[3]))))
