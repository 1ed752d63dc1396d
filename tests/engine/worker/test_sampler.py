"""The sampler against a slow reference written from the definitions, against transformers, and against chance."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.engine.core.sampling_row import SamplingRow
from plimsoll.runtime.engine.worker.draw import CANDIDATES, uniforms
from plimsoll.runtime.engine.worker.logprobs import prompt_logprobs, token_logprobs
from plimsoll.runtime.engine.worker.sampler import SampledToken, Sampler, is_plain
from plimsoll.runtime.kernels.native import native_kernels
from plimsoll.runtime.kernels.table import Draw

VOCABULARY = 300


@pytest.fixture(scope="module", params=["torch", "native"])
def table_draw(request: pytest.FixtureRequest) -> Draw | None:
    """What draws: torch, or the native kernel."""
    return None if request.param == "torch" else native_kernels("cpu", torch.bfloat16).draw


def row(
    params: SamplingParams, *, seed: int = 0, prompt: tuple[int, ...] = (), output: tuple[int, ...] = (), **more: object
) -> SamplingRow:
    return SamplingRow(params=params, seed=seed, prompt_token_ids=prompt, output_token_ids=list(output), **more)


def reference(logits: torch.Tensor, at: SamplingRow) -> dict[int, float]:
    """Probabilities of the tokens that may be drawn, one plain step after another, in Python floats."""
    params = at.params
    scores = {token: float(value) for token, value in enumerate(logits.tolist())}
    for token, bias in params.logit_bias.items():
        scores[token] += bias
    for token in at.forbidden:
        scores[token] = -math.inf
    for token in scores:
        if token in at.prompt_token_ids or token in at.output_token_ids:
            factor = params.repetition_penalty
            scores[token] = scores[token] / factor if scores[token] > 0 else scores[token] * factor
        times = list(at.output_token_ids).count(token)
        scores[token] -= times * params.frequency_penalty + (times > 0) * params.presence_penalty
    top = max(scores.values())
    if params.temperature < 1e-5:
        return {min(token for token, score in scores.items() if score == top): 1.0}
    weights = {token: math.exp((score - top) / params.temperature) for token, score in scores.items()}
    weights = {token: weight for token, weight in weights.items() if weight >= params.min_p and weight > 0}
    order = sorted(weights, key=lambda token: (-weights[token], token))
    if params.top_k:
        order = order[: params.top_k]
    total, kept, mass = sum(weights[token] for token in order), [], 0.0
    for token in order:
        if mass < params.top_p * total or not kept:
            kept.append(token)
        mass += weights[token]
    total = sum(weights[token] for token in kept)
    return {token: weights[token] / total for token in kept}


def distribution(logits: torch.Tensor, at: SamplingRow, draws: int, table_draw: Draw | None) -> np.ndarray:
    """How often each token comes, over `draws` seeds."""
    sampler = Sampler(logits.shape[-1], table_draw)
    rows = [
        SamplingRow(
            params=at.params,
            seed=seed,
            prompt_token_ids=at.prompt_token_ids,
            output_token_ids=at.output_token_ids,
            forbidden=at.forbidden,
        )
        for seed in range(draws)
    ]
    tokens = [result.token_id for result in sampler.sample(logits.expand(draws, -1), rows)]
    return np.bincount(tokens, minlength=logits.shape[-1])


@st.composite
def sampling_params(draw_: st.DrawFn) -> SamplingParams:
    penalty = st.sampled_from([-1.5, 0.0, 0.0, 0.7])
    return SamplingParams(
        temperature=draw_(st.sampled_from([0.0, 0.3, 1.0, 1.0, 1.7])),
        top_k=draw_(st.sampled_from([0, 0, 1, 2, 17, 256, 299, 300, 5000])),
        top_p=draw_(st.sampled_from([1e-6, 0.3, 0.9, 0.999, 1.0, 1.0])),
        min_p=draw_(st.sampled_from([0.0, 0.0, 0.02, 0.5, 1.0])),
        repetition_penalty=draw_(st.sampled_from([1.0, 1.0, 1.3, 0.8])),
        presence_penalty=draw_(penalty),
        frequency_penalty=draw_(penalty),
        logit_bias=draw_(st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(-100, 100, width=16), max_size=4)),
    )


@st.composite
def sampling_rows(draw_: st.DrawFn) -> SamplingRow:
    tokens = st.lists(st.integers(0, VOCABULARY - 1), max_size=30).map(tuple)
    return row(
        draw_(sampling_params()),
        seed=draw_(st.integers(-(2**63), 2**64)),
        prompt=draw_(tokens),
        output=draw_(tokens),
        forbidden=draw_(st.lists(st.integers(0, VOCABULARY - 1), max_size=3).map(tuple)),
    )


@settings(max_examples=70, deadline=None)
@given(st.lists(sampling_rows(), min_size=1, max_size=6), st.integers(0, 2**32 - 1), st.sampled_from([0.1, 2.0, 8.0]))
def test_every_draw_is_possible_and_none_is_missing(
    table_draw: Draw | None, rows: list[SamplingRow], seed: int, spread: float
) -> None:
    """The token drawn is the one at which the reference's running sum passes the uniform number."""
    logits = torch.randn(len(rows), VOCABULARY, generator=torch.Generator().manual_seed(seed)) * spread
    results = Sampler(VOCABULARY, table_draw).sample(logits, rows)
    for values, at, result in zip(logits, rows, results, strict=True):
        expected = reference(values, at)
        assert result.error is None
        uniform = float(uniforms([at.seed], [len(at.output_token_ids)])[0])
        params = at.params
        whole = params.top_p >= 1 and not 0 < params.top_k < VOCABULARY
        order = sorted(expected) if whole else sorted(expected, key=lambda token: (-expected[token], token))
        running = np.cumsum([expected[token] for token in order])
        place = order.index(result.token_id) if result.token_id in expected else -1
        assert place >= 0, (params, result.token_id, expected)
        # float32 against float64: a draw within 1e-5 of a border may fall on either side of it.
        assert running[place] > uniform - 1e-5
        assert place == 0 or running[place - 1] <= uniform + 1e-5


@settings(max_examples=20, deadline=None)
@given(st.lists(sampling_rows(), min_size=2, max_size=8), st.integers(0, 2**32 - 1), st.booleans())
def test_a_row_does_not_depend_on_its_batch(
    table_draw: Draw | None, rows: list[SamplingRow], seed: int, ties: bool
) -> None:
    logits = torch.randn(len(rows), VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3
    logits = logits.round() if ties else logits
    sampler = Sampler(VOCABULARY, table_draw)
    together = sampler.sample(logits, rows)
    alone = [sampler.sample(logits[i : i + 1], [rows[i]])[0] for i in range(len(rows))]
    backwards = sampler.sample(logits.flip(0).contiguous(), rows[::-1])[::-1]
    assert together == alone == backwards


@pytest.mark.parametrize("vocabulary", [32000, 49152, 100003])
def test_large_vocabularies_draw_the_same_alone_and_in_a_batch(table_draw: Draw | None, vocabulary: int) -> None:
    """Also where filters reach past every candidate list: flat logits, top_k above the lists, ties at their ends."""
    generator = torch.Generator().manual_seed(vocabulary)
    flat = torch.zeros(vocabulary)
    peaked = torch.randn(vocabulary, generator=generator) * 4
    coarse = peaked.round()
    filters = [
        SamplingParams(),
        SamplingParams(top_p=0.95),
        SamplingParams(top_k=CANDIDATES[0]),
        SamplingParams(top_k=CANDIDATES[0] + 10, top_p=0.99),
        SamplingParams(top_k=CANDIDATES[-1]),
        SamplingParams(top_k=CANDIDATES[-1] + 160, top_p=0.99),
        SamplingParams(min_p=0.01),
        SamplingParams(top_p=0.9, min_p=0.001, temperature=1.5),
    ]
    logits = torch.stack([values for values in (flat, peaked, coarse) for _ in filters])
    rows = [row(params, seed=seed) for seed, params in enumerate(filters * 3)]
    sampler = Sampler(vocabulary, table_draw)
    together = sampler.sample(logits, rows)
    assert together == [sampler.sample(logits[i : i + 1], [rows[i]])[0] for i in range(len(rows))]
    for values, at, result in zip(logits, rows, together, strict=True):
        assert result.token_id in reference(values, at)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.6),
        SamplingParams(top_k=7),
        SamplingParams(top_p=0.8),
        SamplingParams(min_p=0.1, temperature=1.4),
        SamplingParams(top_k=20, top_p=0.9, min_p=0.01),
        SamplingParams(repetition_penalty=1.5, presence_penalty=0.4, frequency_penalty=0.3),
        SamplingParams(logit_bias={3: 2.0, 5: -100.0}, top_p=0.95),
    ],
    ids=str,
)
def test_frequencies_follow_the_distribution(table_draw: Draw | None, params: SamplingParams) -> None:
    """Pearson's chi-square with fixed seeds: a draw of 8,000 from a fair sampler fails this once in 10,000."""
    vocabulary, draws = 200, 8_000
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(11)) * 2
    at = row(params, prompt=(1, 2, 3, 3), output=(5, 5, 9))
    expected = reference(logits, at)
    found = distribution(logits, at, draws, table_draw)
    assert {int(token) for token in np.flatnonzero(found)} <= set(expected)
    counts = sorted(((share * draws, found[token]) for token, share in expected.items()), reverse=True)
    cells = [cell for cell in counts if cell[0] >= 5]
    rest = [cell for cell in counts if cell[0] < 5]
    if rest:
        cells.append((sum(cell[0] for cell in rest), sum(cell[1] for cell in rest)))
    statistic = sum((seen - want) ** 2 / want for want, seen in cells if want > 0)
    freedom = max(len(cells) - 1, 1)
    # Wilson and Hilferty's approximation of the chi-square quantile at 1 - 1e-4 (z = 3.719).
    limit = freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit


def test_successive_tokens_of_one_seed_are_uniform_and_independent() -> None:
    for numbers in (uniforms([7] * 50_000, range(50_000)), uniforms(range(50_000), [0] * 50_000)):
        pairs = np.bincount((numbers[:-1] * 16).astype(int) * 16 + (numbers[1:] * 16).astype(int), minlength=256)
        statistic = float(((pairs - 49_999 / 256) ** 2 / (49_999 / 256)).sum())
        assert 170 < statistic < 350
        assert 0 <= numbers.min() < 1e-3
        assert 1 - 1e-3 < numbers.max() < 1


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([0, 1, 5, 50, 299]),
    st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    st.sampled_from([0.0, 0.05, 0.3]),
    st.sampled_from([0.5, 1.0, 1.5]),
    st.sampled_from([1.0, 1.2, 0.7]),
    st.integers(0, 2**32 - 1),
)
def test_the_same_tokens_survive_as_in_transformers(
    table_draw: Draw | None, top_k: int, top_p: float, min_p: float, temperature: float, repetition: float, seed: int
) -> None:
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2
    said = torch.randint(0, VOCABULARY, (1, 12), generator=torch.Generator().manual_seed(seed + 1))
    scores = RepetitionPenaltyLogitsProcessor(repetition)(said, logits.clone())
    scores = TemperatureLogitsWarper(temperature)(said, scores) if temperature != 1 else scores
    scores = MinPLogitsWarper(min_p)(said, scores) if min_p else scores
    scores = TopKLogitsWarper(top_k)(said, scores) if top_k else scores
    scores = TopPLogitsWarper(top_p)(said, scores) if top_p < 1 else scores
    theirs = scores.double().softmax(dim=-1)[0].numpy()
    params = SamplingParams(
        top_k=top_k, top_p=top_p, min_p=min_p, temperature=temperature, repetition_penalty=repetition
    )
    draws = 400
    found = distribution(logits[0], row(params, prompt=tuple(said[0].tolist())), draws, table_draw)
    # A token transformers would never draw is never drawn; one it draws nearly always is drawn.
    assert not found[theirs == 0].any()
    assert np.abs(found / draws - theirs).max() < 0.15


def test_greedy_takes_the_first_of_the_best() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0], [5.0, -1.0, 5.0]])
    results = Sampler(3).sample(logits, [row(SamplingParams(temperature=0.0))] * 2)
    assert [result.token_id for result in results] == [1, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_a_number_fails_alone(table_draw: Draw | None, bad: float) -> None:
    logits = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(0))
    rows = [
        row(SamplingParams(top_p=0.9, temperature=t, logprobs=2), seed=i) for i, t in enumerate((0.0, 1.0, 1.0, 0.0))
    ]
    sampler = Sampler(VOCABULARY, table_draw)
    clean = sampler.sample(logits, rows)
    logits[1, 7] = bad
    logits[3] = bad
    results = sampler.sample(logits, rows)
    assert results[0] == clean[0]
    assert results[2] == clean[2]
    assert results[1].error == results[3].error == "the model's output for this request is not a number"
    assert not results[1].rejected, "no field of the request is at fault"
    assert results[1].token_id == -1


def test_logits_that_a_temperature_would_make_infinite_are_drawn_from(table_draw: Draw | None) -> None:
    logits = torch.tensor([[0.0, 3e35, 2e35, -3e35], [1.0, 2.0, 3.0, 4.0]])
    for filters in ({}, {"top_p": 0.9}, {"top_k": 2}, {"min_p": 0.1}):
        rows = [row(SamplingParams(temperature=1e-4, logprobs=1, **filters), seed=3)] * 2
        results = Sampler(4, table_draw).sample(logits, rows)
        assert [(result.token_id, result.error) for result in results] == [(1, None), (3, None)]


def test_a_row_that_forbids_every_token_fails_alone() -> None:
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    rows = [row(SamplingParams(), forbidden=tuple(range(5))), row(SamplingParams())]
    results = Sampler(5).sample(logits, rows)
    assert "no token is left" in (results[0].error or "")
    assert [result.rejected for result in results] == [True, False]
    assert results[1].error is None


def test_a_forced_token_comes_before_all_that_shapes_tokens_and_changes_no_other_row() -> None:
    logits = torch.randn(3, VOCABULARY)
    shaped = SamplingParams(
        temperature=1.5, logit_bias={7: -100.0, 8: 100.0}, allowed_token_ids=(8,), presence_penalty=2.0, logprobs=1
    )
    rows = [row(shaped, forced=7, forbidden=(7,)), row(SamplingParams(seed=1)), row(SamplingParams(temperature=0.0))]
    forced, *others = Sampler(VOCABULARY).sample(logits, rows)
    assert (forced.token_id, forced.error) == (7, None)
    assert forced.logprobs is not None
    assert forced.logprobs.chosen.token_id == 7
    assert others == Sampler(VOCABULARY).sample(logits[1:], rows[1:])
    logits[0, 3] = math.nan
    assert Sampler(VOCABULARY).sample(logits, rows)[0].error
    assert is_plain(row(SamplingParams(temperature=0.0)))
    assert not is_plain(row(SamplingParams(temperature=0.0), forced=7))


def test_a_foreign_token_id_fails_alone_and_says_which() -> None:
    rows = [row(SamplingParams(logit_bias={5: 1.0})), row(SamplingParams(temperature=0.0))]
    results = Sampler(5).sample(torch.eye(2, 5), rows)
    assert results == [
        SampledToken(-1, error="token id 5 is outside the vocabulary of 5", rejected=True),
        SampledToken(1),
    ]


def test_counts_kept_from_step_to_step_equal_counts_made_afresh() -> None:
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(5))
    params = SamplingParams(repetition_penalty=1.3, frequency_penalty=0.5, presence_penalty=0.2)
    output: list[int] = []
    kept = SamplingRow(params=params, seed=1, prompt_token_ids=(4, 5, 4), output_token_ids=output)
    sampler = Sampler(VOCABULARY)
    for _ in range(40):
        fresh = SamplingRow(params=params, seed=1, prompt_token_ids=(4, 5, 4), output_token_ids=list(output))
        token = sampler.sample(logits, [kept])[0].token_id
        assert token == sampler.sample(logits, [fresh])[0].token_id
        output.append(token)
    assert len(set(output)) > 20


def test_logprobs_are_of_the_raw_distribution() -> None:
    logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(2))
    before = logits.clone()
    params = SamplingParams(temperature=0.3, top_k=4, logit_bias={9: 50.0}, logprobs=3, repetition_penalty=1.4)
    rows = [row(params, prompt=(1, 2)), row(SamplingParams(temperature=0.0)), row(SamplingParams(logprobs=0))]
    results = Sampler(VOCABULARY).sample(logits, rows)
    assert torch.equal(logits, before)
    raw = logits.log_softmax(dim=-1)
    first = results[0].logprobs
    assert first is not None
    assert results[0].token_id == first.chosen.token_id == 9
    assert first.chosen.logprob == pytest.approx(float(raw[0, 9]), abs=1e-5)
    order = raw[0].argsort(descending=True).tolist()
    assert first.chosen.rank == order.index(9) + 1
    assert [(entry.token_id, entry.rank) for entry in first.top] == [(order[i], i + 1) for i in range(3)]
    assert [entry.logprob for entry in first.top] == pytest.approx(raw[0, order[:3]].tolist(), abs=1e-5)
    assert results[1].logprobs is None
    assert results[2].logprobs is not None
    assert results[2].logprobs.top == []


@pytest.mark.parametrize(("wanted", "order"), [((4, 3, 0, 4), [3, 4, 0]), ((3,), [3])])
def test_chosen_ids_are_scored_once_each_behind_the_sampled_one(wanted: tuple[int, ...], order: list[int]) -> None:
    logits = torch.tensor([[1.0, 2.0, 2.5, 0.5, 0.0]])
    [found] = token_logprobs(logits, [3], [wanted])
    assert [entry.token_id for entry in found.top] == order
    assert [entry.logprob for entry in found.top] == pytest.approx(logits.log_softmax(-1)[0, order].tolist())
    assert [entry.rank for entry in found.top] == [4, *[0] * (len(order) - 1)]


def test_ranks_order_equals_by_id() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]])
    [found] = token_logprobs(logits, [3], [4])
    assert found.chosen.rank == 3
    assert [entry.token_id for entry in found.top] == [1, 2, 3, 0]


def test_prompt_logprobs_of_many_rows_equal_those_of_each() -> None:
    logits = torch.randn(150, VOCABULARY, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
    ids = torch.randint(0, VOCABULARY, (150,), generator=torch.Generator().manual_seed(4)).tolist()
    together = prompt_logprobs(logits, ids, 2)
    assert together == [token_logprobs(logits[i : i + 1].float(), [ids[i]], [2])[0] for i in range(150)]
