"""A pass in parts of layers as the engine runs it: what counts before its last layer, and how it ends."""

import math
from pathlib import Path

import pytest

from plimsoll.runtime.engine.core.block_manager import ROOT, chain_hash
from plimsoll.runtime.engine.core.prompt_pass import MOST_ROWS
from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.engine.worker import books
from plimsoll.runtime.kernels.native import KEPT_ROWS
from tests.support.checkpoints import make_checkpoint
from tests.support.engines import make_engine, make_request, run, run_alone
from tests.support.prompt_passes import DrawnPace

PROMPT = [200 + at % 50 for at in range(60)]


@pytest.fixture
def engine(tiny_llama: Path) -> Engine:
    """One stream runs; each prompt beside it gets a layer a step, all its tokens but one at once."""
    engine = make_engine(tiny_llama, paced=True)
    engine.scheduler.pace = DrawnPace(2, lambda low, high: max(low, high - 1))
    engine.add(make_request("stream", [5, 9, 33], 30))
    engine.step()
    return engine


def test_a_pass_takes_a_layer_a_step_and_counts_once_it_is_whole(tiny_llama: Path, engine: Engine) -> None:
    expected = run_alone(make_engine(tiny_llama), make_request("alone", PROMPT))
    engine.add(make_request("prompt", PROMPT))
    layers = engine.runner.decoder.done
    seen = []
    for _ in range(2):
        assert [output.request_id for output in engine.step()] == ["stream"]
        engine.check_integrity()
        seq = engine.scheduler.running[1]
        seen.append((seq.num_computed, engine.runner.decoder.done - layers, engine.stats.last_step_tokens))
    # Of the stream's step two layers and the head.
    assert seen == [(0, 4, 1), (59, 8, 60)]
    assert seq.first_scheduled is not None
    tokens = [token for _ in range(8) for out in engine.step() if out.request_id == "prompt" for token in out.token_ids]
    assert tokens == expected.token_ids


def test_one_token_that_is_left_of_a_prompt_is_a_row_of_the_streams_and_no_pass(
    tiny_llama: Path, engine: Engine
) -> None:
    """All but the last token are in the prefix cache. As a pass it would run there and among the decodes."""
    whole = PROMPT[:49]
    expected = run_alone(make_engine(tiny_llama), make_request("alone", whole))
    answers: dict[str, list[int]] = {"first": [], "again": []}
    for name, answer in answers.items():
        engine.add(make_request(name, whole))
        while len(answer) < 8:
            for output in engine.step():
                answers.get(output.request_id, []).extend(output.token_ids)
            engine.check_integrity()
    assert engine.scheduler.running
    assert engine.stats.prefix_hits == 48
    assert answers["first"] == answers["again"] == expected.token_ids


def test_the_clock_of_a_request_starts_with_the_first_part_of_its_pass(engine: Engine) -> None:
    engine.add(make_request("prompt", PROMPT))
    engine.step()
    assert engine.scheduler.running[1].first_scheduled is not None


def test_a_step_that_fails_ends_the_request_of_its_pass_too(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.add(make_request("prompt", PROMPT))
    engine.step()
    assert engine.scheduler.part is not None

    def out_of_memory(*_arguments: object, **_options: object) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(engine.runner.decoder, "advance", out_of_memory)
        engine.add(make_request("next", PROMPT[:20], cache_salt="other"))
        outputs = engine.step()
    assert {output.request_id: output.finish_reason for output in outputs} == {"stream": "error", "prompt": "error"}
    engine.check_integrity()
    assert engine.scheduler.blocks.find_prefix([chain_hash(ROOT, PROMPT[:16])]) == []
    while engine.has_work:
        engine.step()
        engine.check_integrity()


def test_what_a_row_costs_a_layer_follows_the_models_sizes(tmp_path: Path) -> None:
    shape = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
    engine = make_engine(make_checkpoint(tmp_path / "model", head_dim=16, **shape), paced=True)
    work = books.layer_work(engine.facts)
    assert work.windows == (None, None)
    # q, k, v, output, gate, up and down, over the keys and values of a token, which take twice as long.
    assert work.even == (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96) / (2 * 64 * 2)


@pytest.mark.parametrize("layers", [1, 2, 12])
def test_an_engine_that_is_ready_knows_what_a_prompt_and_a_stream_take(tmp_path: Path, layers: int) -> None:
    """So the first prompt has the rows that fit, and no step that is longer than others."""
    model = make_checkpoint(tmp_path / "model", num_hidden_layers=layers)
    engine = make_engine(model, paced=True)
    pace = engine.scheduler.pace
    assert pace is not None
    assert 0 < pace.joining(1, 0) < pace.joining(100, 0) < math.inf
    assert pace.allowed(1) > 0
    # Of what was measured nothing is left.
    assert not engine.runner.cache.pool[:, :, 1:].any()
    engine.check_integrity()
    assert run_alone(engine, make_request("one", PROMPT)).token_ids == (
        run_alone(make_engine(model), make_request("one", PROMPT)).token_ids
    )


def test_an_engine_whose_steps_have_no_room_for_a_measurement_starts(tiny_llama: Path) -> None:
    engine = make_engine(tiny_llama, paced=True, max_batched_tokens=2)
    assert engine.scheduler.pace is not None


FIRST, SECOND = ([200 + at * step % 90 for at in range(600)] for step in (7, 11))


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Phi3ForCausalLM"])
def test_large_steps_leave_the_rows_of_a_pass_alone(tmp_path: Path, architecture: str) -> None:
    """Their results lie in memory that is kept for the next large step, which may not be one of another prompt."""
    model = make_checkpoint(tmp_path / "model", architecture, max_position_embeddings=2048)
    room = {"num_blocks": 200, "max_batched_tokens": 2048}
    expected = [run_alone(make_engine(model, **room), make_request("alone", ids)) for ids in (FIRST, SECOND)]
    engine = make_engine(model, paced=True, **room)
    engine.scheduler.pace = DrawnPace(2, lambda low, high: high if high > 9 else max(low, high - 1))
    # The stream ends in the middle of a pass; the second prompt is a step, beside the end of the pass.
    stream = make_request("stream", [5, 9, 33], 2)
    found = run(engine, [stream, make_request("first", FIRST), make_request("second", SECOND)], arrivals=lambda: 1)
    assert [found[name].token_ids for name in ("first", "second")] == [result.token_ids for result in expected]


def test_results_of_a_pass_are_never_in_memory_that_is_kept() -> None:
    assert MOST_ROWS < KEPT_ROWS
