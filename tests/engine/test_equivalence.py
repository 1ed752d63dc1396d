"""However the work is cut, batched, shared or repeated, a request gets the answer it gets alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.messages import EngineRequest
from tests.support.checkpoints import VOCAB_SIZE
from tests.support.engines import Result, assert_same, make_engine, make_request, run, run_alone
from tests.support.prompt_passes import DrawnPace

MODEL_LEN = 112
BLOCK_BYTES_A_TOKEN = 2 * 2 * 2 * 16 * 4
"""Layers x (key, value) x heads x dim x float32."""
CODES_A_TOKEN = {"int8": 2 * 2 * 2 * (16 + 4), "int4": 2 * 2 * ((8 + 4 + 4) + (8 + 4))}

EXAMPLES = settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@st.composite
def request_lists(draw: st.DrawFn, least: int = 1) -> list[EngineRequest]:
    """Greedy and seeded, some with a prefix in common, some with log-probabilities of the prompt."""
    shared = draw(st.lists(st.integers(3, VOCAB_SIZE - 1), min_size=40, max_size=40))
    requests = []
    for name in range(draw(st.integers(least, 6))):
        kept = draw(st.sampled_from([0, 0, 15, 16, 17, 32, 40]))
        own = draw(st.integers(0 if kept else 1, 48))
        prompt = shared[:kept] + [3 + (17 * name + 31 * i) % (VOCAB_SIZE - 3) for i in range(own)]
        sampled = draw(st.booleans())
        params: dict[str, Any] = {"logprobs": 6}
        if sampled:
            params |= {"temperature": 0.8, "top_k": 5, "seed": draw(st.integers(0, 2**32))}
        if draw(st.integers(0, 3)) == 0:
            params["prompt_logprobs"] = 2
        requests.append(make_request(name, prompt, draw(st.integers(1, 24)), **params))
    return requests


@pytest.fixture(scope="module")
def alone(tiny_llama: Path, kernels: str) -> Engine:
    """Takes one request at a time, whole, and remembers nothing."""
    return build(tiny_llama, kernels, prefix_caching=False, num_blocks=MODEL_LEN // 16)


def build(model: Path, kernels: str, *, num_blocks: int, block_size: int = 16, **options: Any) -> Engine:
    bytes_a_token = CODES_A_TOKEN.get(options.get("cache_precision", "auto"), BLOCK_BYTES_A_TOKEN)
    return make_engine(
        model,
        num_blocks=num_blocks,
        block_bytes=bytes_a_token * block_size,
        block_size=block_size,
        kernels=kernels,
        max_model_len=MODEL_LEN,
        **options,
    )


def compare(alone: Engine, engine: Engine, requests: list[EngineRequest], results: dict[str, Result]) -> None:
    for request in requests:
        assert_same(request, run_alone(alone, request), results[request.request_id])
    assert engine.scheduler.blocks.num_available == engine.scheduler.blocks.num_blocks


@EXAMPLES
@given(requests=request_lists(least=2))
def test_batched_equals_sequential(tiny_llama, kernels, alone, requests):
    engine = build(tiny_llama, kernels, prefix_caching=False, num_blocks=64)
    compare(alone, engine, requests, run(engine, requests))
    assert engine.stats.preemptions == 0


@EXAMPLES
@given(requests=request_lists(), chunk=st.integers(1, 40), block_size=st.sampled_from([16, 32, 64]))
def test_chunked_equals_whole(tiny_llama, kernels, alone, requests, chunk, block_size):
    engine = build(
        tiny_llama, kernels, prefix_caching=False, num_blocks=32, block_size=block_size, max_batched_tokens=chunk
    )
    compare(alone, engine, requests, run(engine, requests))


@EXAMPLES
@given(requests=request_lists(), block_size=st.sampled_from([16, 32]))
def test_cached_equals_cold(tiny_llama, kernels, alone, requests, block_size):
    engine = build(tiny_llama, kernels, num_blocks=64, block_size=block_size)
    run(engine, requests)
    again = run(engine, requests)
    compare(alone, engine, requests, again)
    for request in requests:
        full = (len(request.prompt_token_ids) - 1) // block_size * block_size
        expected = 0 if request.params.prompt_logprobs is not None else full
        assert again[request.request_id].num_cached_tokens == expected


@EXAMPLES
@given(requests=request_lists(least=3), caching=st.booleans(), block_size=st.sampled_from([16, 32]))
def test_preempted_equals_uninterrupted(tiny_llama, kernels, alone, requests, caching, block_size):
    """A pool for one and a half: whoever came last gives way again and again."""
    num_blocks = -(-MODEL_LEN // block_size) + 3
    engine = build(tiny_llama, kernels, prefix_caching=caching, num_blocks=num_blocks, block_size=block_size)
    longer = [make_longer(request) for request in requests[:4]]
    compare(alone, engine, longer, run(engine, longer))


def test_a_crowd_in_a_small_cache_is_preempted_and_nobody_notices(tiny_llama, kernels, alone):
    """The case the property is about, for certain: six that grow to five blocks each, in a pool of ten."""
    engine = build(tiny_llama, kernels, num_blocks=10)
    wishes = [{"logprobs": 6}, {"logprobs": 6, "temperature": 0.8, "top_k": 5, "seed": 3}]
    requests = [make_request(name, [10 + name] * 20, 50, **wishes[name % 2]) for name in range(6)]
    compare(alone, engine, requests, run(engine, requests))
    assert engine.stats.preemptions >= 2


@pytest.fixture(scope="module")
def alone_in_codes(tiny_llama: Path) -> dict[str, Engine]:
    """As `alone`, for each cache of codes. Its rounding would make small differences of torch's sums larger ones."""
    blocks = MODEL_LEN // 16
    return {
        held: build(tiny_llama, "native", prefix_caching=False, num_blocks=blocks, cache_precision=held)
        for held in ("int8", "int4")
    }


@EXAMPLES
@given(
    requests=request_lists(least=2),
    chunk=st.integers(1, 40),
    held=st.sampled_from(["int8", "int4"]),
    num_blocks=st.sampled_from([10, 64]),
)
def test_a_cache_of_codes_changes_no_answer_by_how_the_work_is_cut(
    tiny_llama, alone_in_codes, requests, chunk, held, num_blocks
):
    """Batched, in chunks, in a pool that preempts, and again from cached prefixes."""
    engine = build(tiny_llama, "native", num_blocks=num_blocks, max_batched_tokens=chunk, cache_precision=held)
    for _ in range(2):
        compare(alone_in_codes[held], engine, requests, run(engine, requests))


@settings(EXAMPLES, max_examples=12)
@given(
    data=st.data(),
    requests=request_lists(least=2),
    num_blocks=st.sampled_from([8, 12, 64]),
    chunk=st.integers(20, 100),
    caching=st.booleans(),
)
def test_a_pass_in_parts_of_layers_equals_the_whole(
    tiny_llama, kernels, alone, data, requests, num_blocks, chunk, caching
):
    """Prompts come while others run, parts are of any layers, passes give up rows, and requests hang up within one."""
    engine = build(
        tiny_llama, kernels, num_blocks=num_blocks, prefix_caching=caching, max_batched_tokens=chunk, paced=True
    )
    engine.scheduler.pace = DrawnPace(2, lambda low, high: data.draw(st.integers(low, high)))
    results = run(engine, requests, arrivals=lambda: data.draw(st.integers(0, 1)), before_step=hang_ups(engine, data))
    kept = [request for request in requests if results[request.request_id].finish_reason != "abort"]
    compare(alone, engine, kept, results)


def hang_ups(engine: Engine, data: st.DataObject) -> Callable[[dict[str, Result]], None]:
    """Before some steps the client of a request, or of one that is over, hangs up."""

    def hang_up(results: dict[str, Result]) -> None:
        if data.draw(st.integers(0, 15)) == 0:
            engine.abort([data.draw(st.sampled_from(sorted(results)))])
            engine.check_integrity()

    return hang_up


def make_longer(request: EngineRequest) -> EngineRequest:
    params = {"logprobs": 6, "temperature": request.params.temperature, "top_k": request.params.top_k}
    params |= {"seed": request.params.seed, "prompt_logprobs": request.params.prompt_logprobs}
    return make_request(request.request_id, request.prompt_token_ids[:24], 40, **params)


@settings(EXAMPLES, max_examples=12)
@given(
    data=st.data(),
    requests=request_lists(least=2),
    chunk=st.integers(1, 80),
    block_size=st.sampled_from([16, 32]),
    spare=st.integers(0, 8),
    max_running=st.integers(1, 6),
    caching=st.booleans(),
)
def test_any_arrivals_and_hang_ups_leave_the_others_as_they_were(
    tiny_llama, kernels, alone, data, requests, chunk, block_size, spare, max_running, caching
):
    engine = build(
        tiny_llama,
        kernels,
        num_blocks=-(-MODEL_LEN // block_size) + spare,
        block_size=block_size,
        prefix_caching=caching,
        max_batched_tokens=chunk,
        max_running=max_running,
    )
    results = run(engine, requests, arrivals=lambda: data.draw(st.integers(0, 2)), before_step=hang_ups(engine, data))
    kept = [request for request in requests if results[request.request_id].finish_reason != "abort"]
    compare(alone, engine, kept, results)
