"""The engine as its process sees it: how requests end, alone or together, and that nothing is left behind."""

import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from plimsoll.runtime.engine.core.block_manager import ROOT, chain_hash
from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.messages import LoadProgress
from tests.support.checkpoints import TURN_END, VOCAB_SIZE, make_checkpoint
from tests.support.engines import make_engine, make_request, run, run_alone

MODEL_LEN = 64
BLOCK_BYTES = 2 * 2 * 2 * 16 * 4 * 16
PROMPT = [5, 9, 33, 140, 7]


def build(model: Path, **options: Any) -> Engine:
    return make_engine(model, **({"num_blocks": 16, "block_bytes": BLOCK_BYTES, "max_model_len": MODEL_LEN} | options))


@pytest.fixture
def engine(tiny_llama: Path) -> Engine:
    return build(tiny_llama)


def test_a_started_engine_has_generated_a_token_and_forgotten_it(tiny_llama):
    told: list[LoadProgress] = []
    engine = build(tiny_llama, on_progress=told.append)
    assert list(dict.fromkeys(progress.phase for progress in told)) == ["weights", "cache", "warmup"]
    assert all(progress.done_bytes <= progress.total_bytes for progress in told)
    ready = engine.ready
    assert (ready.model_len, ready.num_blocks, ready.block_size) == (MODEL_LEN, 16, 16)
    assert ready.precision == "float32"
    assert ready.observed["weights"] == ready.predicted["weights"]
    assert ready.observed["kvCache"] == 16 * BLOCK_BYTES
    assert ready.startup.keys() == {"load", "cache", "warmup"}
    assert not engine.has_work
    assert (engine.stats.generation_tokens, engine.stats.steps, engine.stats.blocks_free) == (0, 0, 16)


@pytest.mark.parametrize(
    ("prompt", "params", "reason"),
    [
        ([], {}, "prompt: is empty"),
        ([5, VOCAB_SIZE], {}, r"prompt: token ids go from 0 to 319 \(found 320\)"),
        ([-1], {}, "prompt: token ids"),
        ([5] * MODEL_LEN, {}, "prompt: has 64 tokens.*at most 63"),
        (["5"], {}, "wrong kind"),
        (PROMPT, {"n": 2}, "n: must be between 1 and 1"),
        (PROMPT, {"max_tokens": 0}, "max_tokens: must be at least 1"),
        (PROMPT, {"min_tokens": 9}, "min_tokens: must be between 0 and 8"),
        (PROMPT, {"temperature": float("nan")}, "temperature"),
        (PROMPT, {"temperature": "hot"}, "wrong kind"),
        (PROMPT, {"top_p": 0.0}, "top_p: must be above 0"),
        (PROMPT, {"top_p": 1.5}, "top_p"),
        (PROMPT, {"top_k": -1}, "top_k"),
        (PROMPT, {"min_p": 2.0}, "min_p"),
        (PROMPT, {"repetition_penalty": 0.0}, "repetition_penalty"),
        (PROMPT, {"presence_penalty": float("inf")}, "presence_penalty"),
        (PROMPT, {"logprobs": -1}, "logprobs"),
        (PROMPT, {"prompt_logprobs": 10**6}, "prompt_logprobs"),
        (PROMPT, {"stop_token_ids": (VOCAB_SIZE,)}, "stop_token_ids"),
        (PROMPT, {"logit_bias": {VOCAB_SIZE: 1.0}}, "logit_bias"),
        (PROMPT, {"logit_bias": {5: float("inf")}}, "logit_bias"),
    ],
)
def test_a_request_that_cannot_be_run_is_rejected_alone(engine, prompt, params, reason):
    good = make_request("good", PROMPT)
    results = run(engine, [make_request("bad", prompt, **params), good])
    assert results["bad"].finish_reason == "rejected"
    assert not results["bad"].busy
    assert re.search(reason, results["bad"].error or ""), results["bad"].error
    assert results["good"].finish_reason == "length"
    assert len(results["good"].token_ids) == 8


def test_a_second_request_of_the_same_id_does_not_touch_the_first(engine):
    engine.add(make_request("twin", PROMPT, 4))
    engine.add(make_request("twin", PROMPT, 4))
    outputs = [output for _ in range(5) for output in engine.step()]
    assert [output.finish_reason for output in outputs] == ["rejected", None, None, None, "length"]


def test_a_full_queue_says_so_and_takes_requests_again_later(tiny_llama):
    engine = build(tiny_llama, max_running=1, max_queued_requests=1)
    results = run(engine, [make_request(name, PROMPT) for name in range(4)])
    assert [result.finish_reason for result in results.values()] == ["length", "length", "rejected", "rejected"]
    assert all(results[name].busy for name in "23")
    assert run_alone(engine, make_request("later", PROMPT)).finish_reason == "length"


def test_an_answer_ends_where_the_model_does(engine):
    result = run_alone(engine, make_request(0, PROMPT * 10, 1000))
    assert result.finish_reason == "length"
    assert len(result.token_ids) == MODEL_LEN - 50


def test_end_of_text_ends_the_answer_and_is_no_part_of_it(engine):
    likely = {TURN_END: 1000.0}
    ended = run_alone(engine, make_request(0, PROMPT, ignore_eos=False, logit_bias=likely, logprobs=0))
    assert (ended.token_ids, ended.finish_reason, ended.stop_token_id) == ([], "stop", TURN_END)
    assert ended.logprobs == []
    ignored = run_alone(engine, make_request(0, PROMPT, 3, logit_bias=likely))
    assert (ignored.token_ids, ignored.finish_reason) == ([TURN_END] * 3, "length")


def test_a_stop_token_ends_the_answer_as_its_last_token(engine):
    result = run_alone(engine, make_request(0, PROMPT, logit_bias={50: 1000.0}, stop_token_ids=(50,)))
    assert (result.token_ids, result.finish_reason, result.stop_token_id) == ([50], "stop", 50)


def test_nothing_ends_an_answer_before_min_tokens(engine):
    likely = {TURN_END: 1000.0, 50: 999.0}
    request = make_request(0, PROMPT, min_tokens=3, ignore_eos=False, logit_bias=likely, stop_token_ids=(50,))
    result = run_alone(engine, request)
    assert len(result.token_ids) == 3
    assert not {TURN_END, 50} & set(result.token_ids)
    assert (result.finish_reason, result.stop_token_id) == ("stop", TURN_END)


def test_a_prompt_can_be_scored_without_an_answer(engine):
    result = run_alone(engine, make_request(0, PROMPT, 0, prompt_logprobs=3))
    assert (result.token_ids, result.finish_reason, result.outputs) == ([], "length", 1)
    assert result.prompt_logprobs is not None
    assert result.prompt_logprobs[0] is None
    for token, entry in zip(PROMPT[1:], result.prompt_logprobs[1:], strict=True):
        assert entry is not None
        assert entry.chosen.token_id == token
        assert [alternative.rank for alternative in entry.top] == [1, 2, 3]


def test_requests_without_a_seed_differ_and_those_with_one_repeat(engine):
    wish = {"temperature": 1.0, "max_tokens": 20}
    free = run(engine, [make_request(name, PROMPT, **wish) for name in range(2)])
    assert free["0"].token_ids != free["1"].token_ids
    seeded = run(engine, [make_request(name, PROMPT, seed=11, **wish) for name in range(2)])
    assert seeded["0"].token_ids == seeded["1"].token_ids


def test_samples_of_one_prompt_share_its_blocks(engine):
    prompt = PROMPT * 8
    for name in range(3):
        engine.add(make_request(name, prompt))
    engine.step()
    tables = [seq.block_table for seq in engine.scheduler.running]
    assert tables[0][:2] == tables[1][:2] == tables[2][:2]
    assert engine.stats.prefix_hits == 64
    assert engine.stats.last_step_tokens == 40 + 8 + 8


def test_aborting_frees_what_a_request_held_at_once(tiny_llama):
    engine = build(tiny_llama, max_running=1, prefix_caching=False)
    for name in range(2):
        engine.add(make_request(name, PROMPT))
    engine.step()
    engine.abort(["0", "1", "unknown"])
    engine.check_integrity()
    assert engine.stats.blocks_free == 16
    assert {output.request_id: output.finish_reason for output in engine.step()} == {"0": "abort", "1": "abort"}
    assert not engine.has_work


def test_a_row_that_cannot_be_sampled_fails_alone(engine):
    bad = make_request("bad", PROMPT, min_tokens=1, stop_token_ids=tuple(range(VOCAB_SIZE)))
    good = make_request("good", PROMPT)
    expected = run_alone(engine, good)
    results = run(engine, [bad, good])
    assert results["bad"].finish_reason == "rejected"
    assert "no token is left" in (results["bad"].error or "")
    assert results["good"].token_ids == expected.token_ids


def test_a_sampler_that_breaks_on_one_row_leaves_the_others_their_tokens(engine):
    good = make_request("good", PROMPT)
    expected = run_alone(engine, good)
    bad = make_request("bad", PROMPT, repetition_penalty=2.0)
    engine.add(bad)
    engine.add(good)
    broken = next(seq for seq in engine.scheduler if seq.request_id == "bad")
    broken.row.prompt_token_ids = None
    outputs = engine.step()
    assert {output.request_id: output.finish_reason for output in outputs} == {"bad": "error", "good": None}
    assert outputs[-1].token_ids == expected.token_ids[:1]
    engine.check_integrity()


@pytest.fixture(scope="module")
def poisoned_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whoever says token 7 turns every number after it into none."""
    from safetensors.torch import load_file, save_file

    folder = make_checkpoint(tmp_path_factory.mktemp("poisoned") / "llama")
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][7] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("caching", [True, False])
def test_numbers_that_are_none_stay_in_the_request_that_made_them(poisoned_llama, kernels, caching):
    engine = build(poisoned_llama, num_blocks=4, prefix_caching=caching, kernels=kernels)
    healthy = make_request("healthy", [5, 9, 33] * 7)
    expected = run_alone(engine, healthy)
    bad = make_request("bad", [5, 9, 7] * 8)
    assert run(engine, [healthy, bad])["bad"].finish_reason == "error"
    assert torch.isfinite(engine.runner.cache.pool).all()
    again = make_request("again", [6, 9, 33] * 14)
    assert run_alone(engine, again).finish_reason == "length"
    assert run_alone(engine, healthy).token_ids == expected.token_ids


@pytest.mark.parametrize("count", [0, 1, 5, 20])
@pytest.mark.parametrize("place", [0, 5, 23])
def test_scoring_what_is_no_number_ends_that_request_in_plain_words(poisoned_llama, kernels, count, place):
    engine = build(poisoned_llama, num_blocks=8, kernels=kernels)
    bad = [5, 9, 33] * 8
    bad[place] = 7
    requests = [
        make_request("bad", bad, prompt_logprobs=count, max_tokens=0),
        make_request("answering", bad, prompt_logprobs=count, logprobs=count),
        make_request("healthy", [5, 9, 33] * 7, prompt_logprobs=count, logprobs=count),
    ]
    found = run(engine, requests)
    # Nothing is predicted from the last token of a prompt that is only scored.
    failing = ("answering",) if place == 23 else ("bad", "answering")
    for name in failing:
        assert found[name].finish_reason == "error"
        assert found[name].error == "the model's output for this request is not a number"
    assert found["healthy"].finish_reason == "length"
    assert all(math.isfinite(entry.chosen.logprob) for entry in found["healthy"].prompt_logprobs[1:])
    assert torch.isfinite(engine.runner.cache.pool).all()


def test_a_step_that_fails_ends_its_requests_and_the_engine_goes_on(engine, monkeypatch):
    request = make_request("first", PROMPT * 8)
    expected = run_alone(engine, request)
    engine.add(make_request("known", PROMPT * 8))
    engine.step()

    def out_of_memory(*_arguments: object, **_options: object) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(engine.runner, "step", out_of_memory)
        engine.add(make_request("fresh", [200] * 40))
        outputs = engine.step()
    assert {output.request_id: output.finish_reason for output in outputs} == {"known": "error", "fresh": "error"}
    assert all("no room" in (output.error or "") for output in outputs)
    engine.check_integrity()
    assert engine.scheduler.blocks.find_prefix([chain_hash(ROOT, [200] * 16)]) == [], "it was never computed"
    assert run_alone(engine, request).token_ids == expected.token_ids


def test_finished_requests_leave_their_times(engine):
    before = time.monotonic()
    run(engine, [make_request(name, PROMPT) for name in range(3)])
    times = {entry.request_id: entry for entry in engine.take_times()}
    spent = time.monotonic() - before
    assert times.keys() == {"0", "1", "2"}
    for entry in times.values():
        assert min(entry.queue, entry.prefill, entry.decode) >= 0
        assert entry.queue + entry.prefill + entry.decode <= spent
    assert engine.take_times() == []


def test_counters_add_up(engine):
    run(engine, [make_request(name, PROMPT * 4, 6) for name in range(3)])
    stats = engine.stats
    assert (stats.prompt_tokens, stats.generation_tokens) == (60, 18)
    assert (stats.running, stats.waiting, stats.waiting_tokens) == (0, 0, 0)
    assert (stats.prefix_queries, stats.prefix_hits) == (60, 32)
    assert stats.blocks_free + stats.blocks_cached == stats.blocks_total == 16
