"""A draft beside a model on several ranks: rank 0 runs all of it, and no answer changes."""

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from plimsoll.api.sizes import block_bytes
from plimsoll.checkpoint import open_checkpoint
from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.messages import EngineRequest
from tests.engine.test_draft import BLOCK, asked, build, end, models  # noqa: F401
from tests.support.engines import make_request, run, run_alone

RANKS = 2


def on_ranks(
    models: dict[str, Path], blocks: int, draft: str | None, precision: Any, cache: Any, **more: Any  # noqa: F811
) -> Engine:  # fmt: skip
    """An engine whose ranks hold `blocks` blocks of cache: each rank has one of the model's two key-value heads."""
    kept = block_bytes(open_checkpoint(models["model"]).facts, BLOCK, precision, cache) // RANKS
    kept += 0 if draft is None else block_bytes(open_checkpoint(models[draft]).facts, BLOCK, precision, cache)
    return build(models, 0, draft, precision, cache, **({"tensor": RANKS, "kv_cache_bytes": blocks * kept} | more))


def some(*names: int) -> list[EngineRequest]:
    """Short answers, greedy and seeded, to prompts of few and of many tokens."""
    chosen = [one for one in asked() if int(one.request_id) in names]
    return [replace(one, params=replace(one.params, max_tokens=40)) for one in chosen]


@pytest.mark.parametrize(("precision", "cache"), [("bfloat16", "float"), ("w8a16", "int8")])
def test_answers_on_ranks_are_to_the_bit_those_without_a_draft(
    models: dict[str, Path], precision: Any, cache: Any  # noqa: F811
) -> None:  # fmt: skip
    found: list[dict[str, object]] = []
    for draft in (None, "near"):
        engine = on_ranks(models, 60, draft, precision, cache)
        try:
            for _ in range(2):
                found.append({name: end(result) for name, result in run(engine, some(1, 2, 4, 7)).items()})
            assert engine.stats.prefix_hits > 0
            assert bool(engine.stats.guesses_kept) == (draft is not None)
        finally:
            engine.close()
    assert all(one == found[0] for one in found)


def test_preempted_and_swapped_sequences_answer_alike_on_ranks(models: dict[str, Path]) -> None:  # noqa: F811
    few: dict[str, Any] = {"max_batched_tokens": 37, "host_memory": 1 << 18}
    found = []
    for draft in (None, "other"):
        engine = on_ranks(models, 13, draft, "bfloat16", "float", **few)
        try:
            found.append({name: end(result) for name, result in run(engine, some(3, 4, 5, 6)).items()})
            assert engine.stats.preemptions > 0
            assert bool(engine.stats.guesses) == (draft is not None)
        finally:
            engine.close()
    assert found[0] == found[1]


def test_rank_0_alone_takes_the_bytes_of_the_draft(models: dict[str, Path]) -> None:  # noqa: F811
    engine = on_ranks(models, 40, "model", "w8a16", "int8", host_memory=1 << 18)
    try:
        greedy, seen = (
            run_alone(engine, make_request(name, [5, 6, 7], 60, **more)).token_ids
            for name, more in (("greedy", {}), ("seen", {"logprobs": 0}))
        )
        ready, draft, stats = engine.ready, engine.draft, engine.stats
    finally:
        engine.close()
    assert greedy == seen, "ranks send their largest logits alone, or all"
    assert stats.guesses_kept > 0
    assert stats.steps <= 2 * 60 - stats.guesses_kept, "a step that keeps a guess saves one"
    assert draft is not None
    assert draft.runner.cache.num_blocks == ready.num_blocks == 40
    first, second = ready.ranks
    assert first.num_blocks == second.num_blocks == 40
    assert first.host_blocks == second.host_blocks > 0
    for term in ("weights", "draft", "kvCache"):
        assert ready.observed[term] == ready.predicted[term], term
    assert first.kv_cache == ready.predicted["kvCache"]
    assert second.kv_cache == first.kv_cache - draft.runner.cache.nbytes
