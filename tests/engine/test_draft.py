"""A draft model's guesses change no answer: with them each request has the bits that it has alone and without them."""

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from plimsoll.api.errors import PlimsollError
from plimsoll.api.guesses import DRAFT_ROWS, GUESSING_ROWS
from plimsoll.api.sizes import block_bytes
from plimsoll.checkpoint import open_checkpoint
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.engine.worker.loading import prepare
from plimsoll.runtime.messages import EngineRequest
from tests.support.checkpoints import make_checkpoint
from tests.support.engines import Result, make_engine, make_request, run, run_alone

MODEL_LEN, BLOCK = 192, 16
SHAPE = {"hidden_size": 128, "intermediate_size": 224, "num_attention_heads": 8, "num_key_value_heads": 2}
HELD = [("bfloat16", "float"), ("w8a16", "int8"), ("w4a16", "float"), ("float32", "int4")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model; drafts that agree with it always, often and never; and one with few positions."""
    folder = tmp_path_factory.mktemp("draft")
    found = {
        "model": make_checkpoint(folder / "model", **SHAPE, head_dim=16),
        "other": make_checkpoint(folder / "other", seed=3, num_hidden_layers=1),
        "near": make_checkpoint(folder / "near", **SHAPE, head_dim=16),
        "short": make_checkpoint(folder / "short", **SHAPE, head_dim=16, max_position_embeddings=48),
        "narrow": make_checkpoint(folder / "narrow", vocab_size=300, num_hidden_layers=1),
        "wide": make_checkpoint(folder / "wide", vocab_size=400, num_hidden_layers=1, seed=5),
    }
    file = found["near"] / "model.safetensors"
    noise = torch.Generator().manual_seed(1)
    tensors = {
        name: value * (1 + 0.02 * torch.randn(value.shape, generator=noise)) for name, value in load_file(file).items()
    }
    save_file(tensors, file, {"format": "pt"})
    return found


def build(
    models: dict[str, Path], blocks: int, draft: str | None = None, precision: Any = "bfloat16", cache: Any = "float",
    **options: Any,
) -> Engine:  # fmt: skip
    names = ["model"] if draft is None else ["model", draft]
    facts = [open_checkpoint(models[name]).facts for name in names]
    asked: dict[str, Any] = {} if draft is None else {"draft_model": str(models[draft]), "speculative_tokens": 4}
    return make_engine(
        models["model"], num_blocks=blocks, block_bytes=sum(block_bytes(one, BLOCK, precision, cache) for one in facts),
        block_size=BLOCK, kernels="native", precision=precision, cache_precision=cache,
        **({"max_model_len": MODEL_LEN} | asked | options),
    )  # fmt: skip


def asked() -> list[EngineRequest]:
    """Greedy and seeded ones, some with a long beginning in common; one stops at a token that it soon says."""
    requests = []
    for name, length in enumerate((1, 2, 3, 9, 30, 33, 64, 100)):
        prompt = [3 + (17 * (name if name % 3 else 0) + 31 * i) % 300 for i in range(length)]
        params: dict[str, Any] = {"temperature": 0.8, "seed": name, "top_k": 4} if name % 2 else {}
        requests.append(make_request(name, prompt, 70 + name, logprobs=3, **params))
    return requests


def end(result: Result) -> object:
    """Everything that was said, without rounding."""
    assert result.error is None
    return result.token_ids, repr(result.logprobs), result.finish_reason, result.stop_token_id


@pytest.mark.parametrize(("precision", "cache"), HELD)
def test_no_answer_changes_however_the_work_is_cut(models: dict[str, Path], precision: Any, cache: str) -> None:
    held: dict[str, Any] = {"precision": precision, "cache": cache}
    plain = build(models, MODEL_LEN // BLOCK, prefix_caching=False, **held)
    wanted = {request.request_id: end(run_alone(plain, request)) for request in asked()}
    shuffled = asked()
    random.Random(1).shuffle(shuffled)
    for draft in ("model", "near", "other"):
        alone = build(models, MODEL_LEN // BLOCK, draft, prefix_caching=False, **held)
        for request in asked():
            assert end(run_alone(alone, request)) == wanted[request.request_id]
        assert alone.stats.guesses > 0
        assert draft == "other" or alone.stats.steps < plain.stats.steps, "a step that keeps a guess saves one"
        kept = build(models, 100, draft, speculative_tokens=3, **held)
        for order in (asked(), shuffled):
            assert {name: end(result) for name, result in run(kept, order).items()} == wanted
        assert kept.stats.prefix_hits > 0
        small = build(models, MODEL_LEN // BLOCK + 1, draft, max_batched_tokens=37, max_running=7, **held)
        assert {name: end(result) for name, result in run(small, shuffled).items()} == wanted
        assert small.stats.preemptions > 0
        assert small.stats.guesses > 0


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(),
    draft=st.sampled_from(["model", "near", "other", "short", "narrow", "wide"]),
    most=st.integers(1, 16),
    running=st.integers(1, 6),
    blocks=st.sampled_from([14, 60]),
    slots=st.sampled_from([0, 12]),
)
def test_any_requests_get_the_answers_that_they_get_without_a_draft(
    models: dict[str, Path], data: st.DataObject, draft: str, most: int, running: int, blocks: int, slots: int
) -> None:
    """Two rounds of the same requests, some of which hang up: the second finds prefixes in either tier."""
    prompts = data.draw(st.lists(st.lists(st.integers(3, 7), min_size=1, max_size=60), min_size=1, max_size=6))
    requests = [
        make_request(
            name, prompt, data.draw(st.integers(1, 40)), logprobs=1, seed=name, ignore_eos=False,
            temperature=data.draw(st.sampled_from([0.0, 0.0, 0.7])), top_k=data.draw(st.sampled_from([0, 2])),
        )
        for name, prompt in enumerate(prompts)
    ]  # fmt: skip
    options = {"max_running": running, "max_batched_tokens": data.draw(st.integers(16, 64))}
    plain = run(build(models, 60, **options), requests)
    block = block_bytes(open_checkpoint(models["model"]).facts, BLOCK, "bfloat16")
    engine = build(models, blocks, draft, speculative_tokens=most, host_memory=slots * block, **options)

    def hang_up(results: dict[str, Result]) -> None:
        if data.draw(st.integers(0, 15)) == 0:
            engine.abort([data.draw(st.sampled_from(sorted(results)))])
            engine.check_integrity()

    for _ in range(2):
        found = run(engine, requests, arrivals=lambda: data.draw(st.integers(0, 3)), before_step=hang_up)
        for name, one in found.items():
            assert one.finish_reason == "abort" or end(one) == end(plain[name])


def test_a_draft_that_is_always_right_gives_each_step_a_token_more_than_it_guesses(models: dict[str, Path]) -> None:
    engine = build(models, 40, "model")
    request = make_request("one", [5, 6, 7], 60)
    run_alone(engine, request)
    # The first step runs the prompt; each of the others keeps four guesses, or fewer at the end of a block of 16.
    assert engine.stats.steps == 15
    assert engine.stats.guesses == engine.stats.guesses_kept


def test_what_a_draft_has_run_of_a_prefix_it_does_not_run_again(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, ran = build(models, 40, "model"), []
    assert engine.draft is not None
    step = engine.draft.runner.step

    def watched(rows: Any, *args: Any, **named: Any) -> Any:
        ran.append(sum(row.num_new_tokens for row in rows))
        return step(rows, *args, **named)

    monkeypatch.setattr(engine.draft.runner, "step", watched)
    prompt = [3 + 31 * at % 300 for at in range(100)]
    run_alone(engine, make_request("first", prompt, 20))
    assert ran[0] == 101
    assert max(ran[1:]) <= 2, "what came since the last guess, and the guess that was not run"
    ran.clear()
    again = run_alone(engine, make_request("second", prompt, 20))
    assert again.num_cached_tokens == 96
    assert ran[0] == 101 - 96
    assert engine.stats.guesses == engine.stats.guesses_kept


def test_a_long_text_is_run_in_parts_before_the_first_guess(models: dict[str, Path]) -> None:
    engine = build(models, 60, "model", max_running=8)
    requests = [make_request(name, [3 + (name + 31 * at) % 300 for at in range(150)], 30) for name in range(4)]
    assert DRAFT_ROWS < 4 * 150
    found = run(engine, requests)
    assert all(len(one.token_ids) == 30 for one in found.values())
    assert engine.stats.guesses == engine.stats.guesses_kept > 0


def test_a_draft_that_guesses_badly_is_switched_off(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build(models, 40, "other")
    guessed = [0]

    def watch(results: dict[str, Result]) -> None:
        guessed.append(engine.stats.guesses)

    run(engine, [make_request("bad", [5, 6, 7], 180)], before_step=watch)
    steps_with_guesses = sum(one != other for one, other in pairwise(guessed))
    assert 2 <= steps_with_guesses < 20
    assert engine.stats.steps > 150


def test_no_more_than_the_positions_of_the_draft_are_guessed(models: dict[str, Path]) -> None:
    engine = build(models, 40, "short")
    run_alone(engine, make_request("beyond", list(range(3, 63)), 30))
    assert engine.stats.guesses == 0
    run_alone(engine, make_request("within", [5, 6, 7], 30))
    assert engine.stats.guesses > 0


def test_a_choice_that_depends_on_what_was_chosen_before_is_not_guessed(models: dict[str, Path]) -> None:
    engine = build(models, 40, "model")
    run_alone(engine, make_request("one", [5, 6, 7], 20, repetition_penalty=1.1))
    assert engine.stats.guesses == 0


def test_a_step_of_many_requests_guesses_nothing_and_runs_no_draft(models: dict[str, Path]) -> None:
    engine = build(models, 100, "model", max_running=2 * GUESSING_ROWS)
    assert engine.draft is not None
    before = engine.draft.runner.decoder.done
    run(engine, [make_request(name, [5, 6, 7], 12) for name in range(GUESSING_ROWS)])
    assert engine.stats.guesses == 0
    assert engine.draft.runner.decoder.done == before


def test_the_draft_takes_the_bytes_that_were_foretold(models: dict[str, Path]) -> None:
    for precision, cache in HELD:
        engine = build(models, 40, "other", precision, cache)
        ready = engine.ready
        assert ready.num_blocks == 40
        for term in ("weights", "draft", "kvCache"):
            assert ready.observed[term] == ready.predicted[term], (precision, term)
        assert "draft" not in build(models, 40, None, precision, cache).ready.predicted


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"speculative_tokens": 0}, "spec.serving.draft: guesses no tokens.*Set speculative_tokens 4"),
        ({"draft_model": "/nowhere"}, "/nowhere"),
        ({"memory": 300 << 20, "max_model_len": MODEL_LEN, "kv_cache_bytes": None}, "weights .* draft .* workspace"),
    ],
)
def test_a_draft_that_cannot_run_is_refused(models: dict[str, Path], options: dict[str, Any], words: str) -> None:
    wish: dict[str, Any] = {
        "precision": "float32", "memory": 2 << 30, "kv_cache_bytes": 1 << 20, "block_size": BLOCK,
        "draft_model": str(models["model"]), "speculative_tokens": 4,
    }  # fmt: skip
    with pytest.raises(PlimsollError, match=words):
        prepare(EngineConfig(model=str(models["model"]), **(wish | options)))
