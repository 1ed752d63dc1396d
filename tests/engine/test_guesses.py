"""Guesses change no answer: with them each request has the bits that it has alone and without them."""

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plimsoll.api.guesses import GUESSING_ROWS
from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.messages import EngineRequest
from tests.engine.test_equal_bits import BLOCK, MODEL_LEN, bits, build, model  # noqa: F401
from tests.support.engines import Result, make_request, run, run_alone

#: Any model soon repeats itself if it may choose these three tokens only.
FEW = (5, 6, 7)
HELD = [("bfloat16", "float"), ("w8a16", "int8"), ("w4a16", "float"), ("float32", "int4")]


def asked() -> list[EngineRequest]:
    """Greedy and seeded ones; some stop at a token, at one that is said often, or look at three alternatives."""
    requests = []
    for name, length in enumerate((2, 3, 9, 30, 33, 64, 100)):
        prompt = [3 + (17 * (name if i >= 48 or name % 3 else 0) + 31 * i) % 300 for i in range(length)]
        params: dict[str, Any] = {"allowed_token_ids": FEW}
        if name % 2:
            params |= {"temperature": 1.0, "seed": name}
        if name == 4:
            params["stop_token_ids"] = (7,)
        requests.append(make_request(name, prompt, 40 + name, logprobs=3, **params))
    return requests


def end(result: Result) -> object:
    return bits(result), result.finish_reason, result.stop_token_id


@pytest.mark.parametrize(("precision", "cache"), HELD)
def test_no_answer_changes_however_the_work_is_cut(model: Path, precision: Any, cache: str) -> None:  # noqa: F811
    held = {"cache_precision": cache}
    plain = build(model, precision, MODEL_LEN // BLOCK, prefix_caching=False, **held)
    wanted = {request.request_id: end(run_alone(plain, request)) for request in asked()}
    assert plain.stats.guesses == 0

    def holds(engine: Engine, order: list[EngineRequest]) -> None:
        assert {name: end(result) for name, result in run(engine, order).items()} == wanted
        assert 0 < engine.stats.guesses_kept < engine.stats.guesses

    shuffled = asked()
    random.Random(1).shuffle(shuffled)
    alone = build(model, precision, MODEL_LEN // BLOCK, prefix_caching=False, speculative_tokens=5, **held)
    for request in asked():
        assert end(run_alone(alone, request)) == wanted[request.request_id]
    assert alone.stats.steps < plain.stats.steps, "a step that keeps a guess saves one"
    holds(build(model, precision, 100, speculative_tokens=3, **held), shuffled)
    kept = build(model, precision, 100, speculative_tokens=16, **held)
    holds(kept, asked())
    holds(kept, shuffled)
    small = build(model, precision, MODEL_LEN // BLOCK + 4, max_batched_tokens=37, speculative_tokens=4, **held)
    holds(small, shuffled)
    assert small.stats.preemptions > 0


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), most=st.integers(1, 16), running=st.integers(1, 6), blocks=st.sampled_from([14, 60]))
def test_any_requests_get_the_answers_that_they_get_without_guesses(
    model: Path,  # noqa: F811
    data: st.DataObject,
    most: int,
    running: int,
    blocks: int,
) -> None:
    prompts = data.draw(st.lists(st.lists(st.integers(3, 6), min_size=1, max_size=40), min_size=1, max_size=6))
    requests = [
        make_request(
            name, prompt, data.draw(st.integers(1, 30)), logprobs=1, allowed_token_ids=FEW,
            temperature=data.draw(st.sampled_from([0.0, 0.7, 2.0])), seed=name, top_k=data.draw(st.integers(0, 3)),
            ignore_eos=False, stop_token_ids=data.draw(st.sampled_from([(), (6,)])),
        )
        for name, prompt in enumerate(prompts)
    ]  # fmt: skip
    options = {"max_running": running, "max_batched_tokens": data.draw(st.integers(16, 64))}
    plain = run(build(model, "bfloat16", blocks, **options), requests)
    found = run(build(model, "bfloat16", blocks, speculative_tokens=most, **options), requests)
    assert {name: end(one) for name, one in found.items()} == {name: end(one) for name, one in plain.items()}


def test_a_choice_that_depends_on_what_was_chosen_before_is_not_guessed(model: Path) -> None:  # noqa: F811
    engine = build(model, "bfloat16", 100, speculative_tokens=8)
    few: dict[str, Any] = {"allowed_token_ids": FEW}
    for name, params in enumerate(
        ({"repetition_penalty": 1.1}, {"presence_penalty": 0.1}, {"frequency_penalty": 0.1}, {"min_tokens": 3},
         {"bad_words": ((6, 5),)})
    ):  # fmt: skip
        run_alone(engine, make_request(name, [5, 6, 7] * 5, 30, **few, **params))
    assert engine.stats.guesses == 0
    run_alone(engine, make_request("plain", [5, 6, 7] * 5, 30, **few))
    assert engine.stats.guesses > 0


def test_a_step_of_many_requests_guesses_nothing(model: Path) -> None:  # noqa: F811
    engine = build(model, "bfloat16", 200, speculative_tokens=8, max_running=2 * GUESSING_ROWS)
    requests = [make_request(name, [5, 6, 7] * 3, 12, allowed_token_ids=FEW) for name in range(GUESSING_ROWS)]
    run(engine, requests)
    assert engine.stats.guesses == 0
    run(engine, requests[:3])
    assert engine.stats.guesses > 0
    small = build(model, "bfloat16", 200, speculative_tokens=8, max_running=2)
    run(small, requests[:4])
    assert small.stats.guesses == 0, "no more rows are sampled than requests may run: logits have no more room"


def test_ranks_guess_alike(model: Path) -> None:  # noqa: F811
    found = []
    for tokens in (0, 4):
        engine = build(model, "float32", 100, tensor=2, speculative_tokens=tokens)
        try:
            found.append({name: end(result) for name, result in run(engine, asked()).items()})
            assert bool(engine.stats.guesses_kept) == bool(tokens)
        finally:
            engine.close()
    assert found[0] == found[1]
