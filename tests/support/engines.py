"""Small engines and ways to turn them: every step is followed by a check of their books."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.engine.worker.draw import uniforms
from plimsoll.runtime.engine.worker.loading import OnProgress
from plimsoll.runtime.messages import EngineRequest, FinishReason, TokenLogprobs, TokenOutput

POOL = 64 << 20
"""Bytes of a cache that is large enough for tests. An engine fills its cache with zeros as it starts."""
HAIR = 1e-4
"""Log-probabilities of float32 runs that differ only in how the work was cut agree this closely."""


@dataclass
class Result:
    """Everything an engine said about one request."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    num_cached_tokens: int = 0
    error: str | None = None
    busy: bool = False
    outputs: int = 0

    def take(self, output: TokenOutput) -> None:
        assert self.finish_reason is None, "an output after the last one"
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs or []
        if output.prompt_logprobs is not None:
            assert self.prompt_logprobs is None, "prompt log-probabilities twice"
            self.prompt_logprobs = output.prompt_logprobs
        self.num_cached_tokens += output.num_cached_tokens
        self.finish_reason = output.finish_reason
        self.stop_token_id = output.stop_token_id
        self.error = output.error
        self.busy = output.busy
        self.outputs += 1


def make_engine(
    model: Path,
    *,
    num_blocks: int = 32,
    block_bytes: int = 0,
    block_size: int = 16,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> Engine:
    """A float32 engine on one thread with a pool of `num_blocks`, or of `POOL` bytes where `block_bytes` is 0.

    With `memory` among the options the pool is what an engine takes of it by itself.
    """
    cache = num_blocks * block_bytes or (None if "memory" in options else POOL)
    defaults: dict[str, Any] = {"precision": "float32", "memory": 2 * 2**30, "threads": 1, "kv_cache_bytes": cache}
    return Engine(EngineConfig(model=str(model), block_size=block_size, **(defaults | options)), on_progress)


def make_request(name: object, prompt: Sequence[int], max_tokens: int = 8, **params: Any) -> EngineRequest:
    defaults = {"temperature": 0.0, "ignore_eos": True}
    return EngineRequest(
        request_id=str(name),
        prompt_token_ids=list(prompt),
        params=SamplingParams(max_tokens=max_tokens, **(defaults | params)),
        arrival=time.monotonic(),
    )


def run(
    engine: Engine,
    requests: Iterable[EngineRequest],
    *,
    arrivals: Callable[[], int] | None = None,
    before_step: Callable[[dict[str, Result]], None] | None = None,
) -> dict[str, Result]:
    """Turns the engine until all is done, checking its books after each step.

    Args:
        arrivals: how many requests come before the next step; by default all at once.
        before_step: called with the results so far.
    """
    todo = list(requests)
    results = {request.request_id: Result() for request in todo}
    while todo or engine.has_work:
        count = len(todo) if arrivals is None else arrivals()
        count = count if engine.has_work else max(1, count)
        for request in todo[:count]:
            engine.add(request)
        del todo[:count]
        if before_step is not None:
            before_step(results)
        for output in engine.step():
            results[output.request_id].take(output)
        engine.check_integrity()
    assert all(result.finish_reason is not None for result in results.values())
    return results


def run_alone(engine: Engine, request: EngineRequest) -> Result:
    return run(engine, [request])[request.request_id]


def assert_same(request: EngineRequest, expected: Result, found: Result) -> None:
    """Equal tokens and, within a hair, equal log-probabilities; `logprobs` must have been asked for.

    Rounding may decide a token where the model itself is within a hair of another; from there on the two runs are about
    different texts, and only there is a difference let pass.
    """
    assert found.error is None
    assert (found.prompt_logprobs is None) == (expected.prompt_logprobs is None)
    for here, there in zip(expected.prompt_logprobs or [], found.prompt_logprobs or [], strict=True):
        assert (here is None) == (there is None)
        if here is not None and there is not None:
            assert here.chosen.token_id == there.chosen.token_id
            assert abs(here.chosen.logprob - there.chosen.logprob) < HAIR
    for index, (here, there) in enumerate(zip(expected.logprobs, found.logprobs, strict=False)):
        if expected.token_ids[index] != found.token_ids[index]:
            assert _hangs_by_a_hair(request.params, index, here), f"token {index} of request {request.request_id}"
            return
        assert abs(here.chosen.logprob - there.chosen.logprob) < HAIR
    assert found.token_ids == expected.token_ids
    assert found.finish_reason == expected.finish_reason
    assert found.stop_token_id == expected.stop_token_id


def _hangs_by_a_hair(params: SamplingParams, index: int, entry: TokenLogprobs) -> bool:
    """Whether a change of a hair in the model's output may change the token chosen."""
    logprobs = np.array([alternative.logprob for alternative in entry.top])
    if params.temperature == 0.0:
        return bool(logprobs[0] - logprobs[1] < HAIR)
    assert 0 < params.top_k <= len(logprobs), "ask for as many alternatives as may be drawn"
    kept = np.exp(logprobs[: params.top_k] / params.temperature)
    ends = np.cumsum(kept) / kept.sum()
    edge = logprobs[params.top_k - 1] - logprobs[params.top_k] if len(logprobs) > params.top_k else 1.0
    assert params.seed is not None
    return bool(np.abs(ends - uniforms([params.seed], [index])[0]).min() < HAIR or edge < HAIR)
