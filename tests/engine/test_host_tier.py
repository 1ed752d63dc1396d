"""A cache of two tiers: what was swapped out, or had to give way, comes back with every bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plimsoll.api.errors import SpecError
from plimsoll.api.sizes import block_bytes
from plimsoll.checkpoint import open_checkpoint
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine import engine as engine_module
from plimsoll.runtime.engine.core.host_blocks import Copy
from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.engine.worker.loading import prepare
from plimsoll.runtime.messages import EngineRequest
from tests.support.engines import Result, make_engine, make_request, run, run_alone
from tests.support.prompt_passes import DrawnPace
from tests.support.rank_threads import RankThreads

MODEL_LEN, BLOCK = 112, 16
HELD = ("float", "int8", "int4")


def block_of(model: Path, held: str) -> int:
    """Bytes of a block of the cache."""
    return block_bytes(open_checkpoint(model).facts, BLOCK, "float32", held)  # type: ignore[arg-type]


def build(model: Path, held: str = "float", *, num_blocks: int, slots: int = 0, **options: Any) -> Engine:
    defaults = {"kernels": "native", "max_model_len": MODEL_LEN, "cache_precision": held}
    block = block_of(model, held)
    return make_engine(
        model, num_blocks=num_blocks, block_bytes=block, block_size=BLOCK, host_memory=slots * block,
        **(defaults | options),
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(tiny_llama: Path) -> dict[str, Engine]:
    """For each precision of the cache: one request at a time, whole, and nothing is remembered."""
    blocks = MODEL_LEN // BLOCK
    return {held: build(tiny_llama, held, prefix_caching=False, num_blocks=blocks) for held in HELD}


def bits(result: Result) -> object:
    """Everything that was said, without rounding."""
    assert result.error is None
    return result.token_ids, repr(result.logprobs), repr(result.prompt_logprobs)


def turns(seed: int, count: int, length: int, answer: int) -> list[EngineRequest]:
    """Requests of one round: each prompt has a beginning of its own."""
    wishes: list[dict[str, Any]] = [{}, {"temperature": 0.9, "seed": 5}]
    return [
        make_request(
            f"{seed}-{name}", [3 + (13 * seed + 17 * name + 31 * at) % 300 for at in range(length + name)], answer,
            logprobs=5, **wishes[name % 2],
        )
        for name in range(count)
    ]  # fmt: skip


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    data=st.data(),
    held=st.sampled_from(HELD),
    spare=st.integers(1, 6),
    slots=st.integers(1, 24),
    chunk=st.integers(5, 80),
    guesses=st.sampled_from([0, 3]),
    rounds=st.lists(st.integers(0, 2), min_size=2, max_size=4),
    paced=st.booleans(),
)
def test_swapped_equals_uninterrupted_and_a_prefix_from_the_host_equals_a_cold_one(
    tiny_llama: Path, alone: dict[str, Engine], data: st.DataObject, held: str, spare: int, slots: int, chunk: int,
    guesses: int, rounds: list[int], paced: bool,
) -> None:  # fmt: skip
    """Rounds of requests that come back, in a first tier for little more than one of them; some hang up."""
    engine = build(
        tiny_llama, held, num_blocks=MODEL_LEN // BLOCK + spare, slots=slots, max_batched_tokens=chunk,
        speculative_tokens=guesses, paced=paced,
    )  # fmt: skip
    if paced:
        engine.scheduler.pace = DrawnPace(2, lambda low, high: data.draw(st.integers(low, high)))

    def hang_up(results: dict[str, Result]) -> None:
        if data.draw(st.integers(0, 15)) == 0:
            engine.abort([data.draw(st.sampled_from(sorted(results)))])
            engine.check_integrity()

    for seed in rounds:
        requests = turns(seed, 4, data.draw(st.integers(1, 50)), 40)
        results = run(engine, requests, arrivals=lambda: data.draw(st.integers(0, 3)), before_step=hang_up)
        for request in requests:
            found = results[request.request_id]
            if found.finish_reason != "abort":
                assert bits(found) == bits(run_alone(alone[held], request))


@pytest.mark.parametrize("held", HELD)
def test_preempted_requests_go_on_from_copies(tiny_llama: Path, alone: dict[str, Engine], held: str) -> None:
    """The case the property is about, for certain: without copies each preemption would compute its prompt again."""
    engine = build(tiny_llama, held, num_blocks=10, slots=40)
    requests = turns(1, 6, 20, 50)
    results = run(engine, requests)
    stats = engine.stats
    assert stats.preemptions >= 2
    assert stats.host_saved > 0
    assert stats.host_loaded > 0
    for request in requests:
        assert bits(results[request.request_id]) == bits(run_alone(alone[held], request))


@pytest.mark.parametrize("held", HELD)
def test_a_conversation_that_comes_back_finds_its_prefix_on_the_host(
    tiny_llama: Path, alone: dict[str, Engine], held: str
) -> None:
    engine = build(tiny_llama, held, num_blocks=8, slots=24)
    (request,) = turns(1, 1, 90, 8)
    run(engine, [request])
    for seed in (2, 3):
        run(engine, turns(seed, 1, 90, 8))
    before = engine.stats.steps, engine.stats.host_hits
    again = run_alone(engine, request)
    assert again.num_cached_tokens == 80
    assert engine.stats.host_hits - before[1] > 0
    assert bits(again) == bits(run_alone(alone[held], request))


def test_a_step_that_fails_with_copies_leaves_no_wrong_block_behind(
    tiny_llama: Path, alone: dict[str, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build(tiny_llama, num_blocks=8, slots=24)
    (request,) = turns(1, 1, 90, 8)
    for seed in (1, 2, 3):
        run(engine, turns(seed, 1, 90, 8))
    assert engine.runner.host is not None

    def fails(copies: list[Copy]) -> None:
        raise RuntimeError("no copy was made")

    with monkeypatch.context() as patch:
        patch.setattr(engine.runner.host, "copy", fails)
        failed = run_alone(engine, request)
    assert failed.error is not None
    assert "no copy was made" in failed.error
    again = run_alone(engine, request)
    assert bits(again) == bits(run_alone(alone["float"], request))


def test_where_computing_again_is_quicker_it_is_computed_again(tiny_llama: Path, alone: dict[str, Engine]) -> None:
    engine = build(tiny_llama, num_blocks=8, slots=24)
    engine._copy_times.seconds_a_block = 1e9
    for seed in (1, 2, 3, 1):
        (request,) = turns(seed, 1, 90, 8)
        found = run_alone(engine, request)
        # Known after the first step with a block of tokens.
        engine._copy_times.tokens_a_second = engine._copy_times.tokens_a_second or 1.0
    assert found.num_cached_tokens == 0
    assert (engine.stats.host_saved, engine.stats.host_loaded) == (0, 0)
    assert bits(found) == bits(run_alone(alone["float"], request))


def test_the_tier_takes_the_bytes_that_were_foretold(tiny_llama: Path) -> None:
    engine = build(tiny_llama, num_blocks=8, slots=24)
    ready = engine.ready
    assert ready.host_blocks == 24
    assert ready.observed["hostCache"] == ready.predicted["hostCache"] == 24 * block_of(tiny_llama, "float")
    plain = build(tiny_llama, num_blocks=8).ready
    assert "hostCache" not in plain.predicted
    assert plain.host_blocks == 0
    assert plain.predicted["headroom"] - ready.predicted["headroom"] == 24 * block_of(tiny_llama, "float")


def test_measuring_how_long_a_copy_takes_changes_no_block(tiny_llama: Path) -> None:
    host = build(tiny_llama, num_blocks=8, slots=24).runner.host
    assert host is not None
    host._first.copy_(torch.arange(8.0).view(8, 1, 1, 1, 1, 1).expand_as(host._first))
    held = host._first.clone()
    assert host.seconds_a_block() > 0
    assert torch.equal(host._first, held)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prefix_caching": False}, r"spec.kvCache.hostMemory: keeps blocks by the prefix.*prefix caching is off"),
        ({"host_memory": 100}, r"spec.kvCache.hostMemory: holds no block of the cache, which takes 8.0 KiB"),
    ],
)
def test_a_tier_that_could_hold_nothing_is_refused(tiny_llama: Path, options: dict[str, Any], words: str) -> None:
    wish = {"precision": "float32", "memory": 2 << 30, "kv_cache_bytes": 1 << 20, "block_size": BLOCK}
    with pytest.raises(SpecError, match=words):
        prepare(EngineConfig(model=str(tiny_llama), **(wish | {"host_memory": 1 << 20} | options)))


def test_each_rank_copies_its_own_part(
    tiny_llama: Path, alone: dict[str, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "Ranks", RankThreads)
    half = block_of(tiny_llama, "float") // 2
    engine = make_engine(
        tiny_llama, num_blocks=8, block_bytes=half, block_size=BLOCK, tensor=2, kernels="native",
        host_memory=24 * half, max_model_len=MODEL_LEN,
    )  # fmt: skip
    try:
        assert [rank.host_blocks for rank in engine.ready.ranks] == [24, 24]
        requests = turns(1, 6, 20, 50)
        found = run(engine, requests)
        assert engine.stats.host_loaded > 0
        (long,) = turns(2, 1, 90, 8)
        cold = run_alone(engine, long)
        for seed in (3, 4):
            run(engine, turns(seed, 1, 90, 8))
        again = run_alone(engine, long)
        assert again.num_cached_tokens == 80
        assert engine.stats.host_hits > 0
        assert bits(again) == bits(cold)
    finally:
        engine.close()
    for request in requests:
        assert found[request.request_id].token_ids == run_alone(alone["float"], request).token_ids
