"""Draws by the native kernel: the tokens that torch draws, on any number of threads."""

import math

import numpy as np
import pytest
import torch

from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.engine.worker.draw import draw, uniforms
from plimsoll.runtime.kernels.native import native_kernels
from plimsoll.runtime.kernels.table import Draw
from plimsoll.runtime.models.best import best_of

FILTERS = [
    SamplingParams(), SamplingParams(temperature=0.3), SamplingParams(min_p=0.03, temperature=1.3),
    SamplingParams(top_p=0.95), SamplingParams(top_p=0.5, temperature=0.8), SamplingParams(top_p=0.99999),
    SamplingParams(top_p=1e-6), SamplingParams(top_k=1), SamplingParams(top_k=7), SamplingParams(top_k=60, top_p=0.9),
    SamplingParams(top_k=700), SamplingParams(top_k=5000, top_p=0.97), SamplingParams(top_k=20, min_p=0.2),
    SamplingParams(top_p=0.9, min_p=0.01, temperature=2.0),
]  # fmt: skip
VOCABULARIES = (1, 5, 16, 300, 1000, 4099, 32_003)


@pytest.fixture(scope="module")
def native() -> Draw:
    found = native_kernels("cpu", torch.float32).draw
    assert found is not None
    return found


def rows_of(vocabulary: int) -> torch.Tensor:
    """[8, vocabulary]: random, peaked, of few values, all alike, with tokens that may not come, large, and tiny."""
    made = torch.randn(8, vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * 2
    made[1] *= 4
    made[2] = made[2].round()
    made[3] = -0.0
    made[3, ::2] = 0.0
    made[4, 1::3] = -math.inf
    made[5] += 300
    made[6] = -made[6].abs() - 50
    made[7, 1:] = -math.inf
    return made


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("by", FILTERS, ids=range(len(FILTERS)))
def test_the_kernel_draws_what_torch_draws(native: Draw, by: SamplingParams, vocabulary: int) -> None:
    """None of these draws comes within rounding of a border, but of two rows: where all tokens are alike the end of a
    nucleus may be a border exactly, and of large values torch rounds the weights more."""
    logits = rows_of(vocabulary).repeat(100 if vocabulary < 5000 else 12, 1)
    count, kind = len(logits), np.arange(len(logits)) % 8
    numbers = uniforms(range(count), [3] * count)
    found = native(logits, range(count), best_of(logits).values, [by] * count, numbers)
    wanted = np.array(draw(logits, [by] * count, numbers))
    exact = (kind != 3) & (kind != 5)
    assert np.array_equal(found[exact], wanted[exact])
    assert np.abs(found - wanted)[kind == 3].max() <= 1
    assert (found != wanted)[kind == 5].mean() < 0.05


def test_rows_are_those_that_are_named_with_their_own_filters(native: Draw) -> None:
    logits = rows_of(700)
    largest, numbers = best_of(logits).values, uniforms(range(len(FILTERS)), range(len(FILTERS)))
    rows = [index * 5 % 8 for index in range(len(FILTERS))]
    together = native(logits, rows, largest[rows], FILTERS, numbers)
    for place, row in enumerate(rows):
        own = native(logits[row : row + 1], [0], largest[[row]], [FILTERS[place]], numbers[[place]])
        assert own[0] == together[place]


def test_the_number_of_threads_changes_no_draw(native: Draw) -> None:
    logits = rows_of(4099).repeat(len(FILTERS), 1)
    filters = [by for by in FILTERS for _ in range(8)]
    numbers, found = uniforms(range(len(logits)), [0] * len(logits)), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(native(logits, range(len(logits)), best_of(logits).values, filters, numbers).tolist())
    assert found[0] == found[1] == found[2]


def test_the_ends_of_a_uniform_number_draw_tokens_that_may_come(native: Draw) -> None:
    logits = torch.full((1, 1000), -200.0)
    logits[0, 300:700] = torch.linspace(0, 1, 400)
    for by in FILTERS:
        for number in (0.0, 1 - 2.0**-53):
            [token] = native(logits, [0], best_of(logits).values, [by], np.array([number]))
            assert 300 <= token < 700


@pytest.mark.parametrize("row", [-1, 8, 1 << 62])
def test_a_row_outside_the_logits_is_refused(native: Draw, row: int) -> None:
    with pytest.raises(IndexError, match="a row is not below 8"):
        native(rows_of(30), [row], np.zeros(1, dtype=np.float32), FILTERS[:1], np.zeros(1))


def test_a_row_whose_largest_value_is_not_finite_is_refused(native: Draw) -> None:
    with pytest.raises(ValueError, match="not finite"):
        native(rows_of(30), [0], np.full(1, np.inf, dtype=np.float32), FILTERS[:1], np.zeros(1))
    with pytest.raises(ValueError, match="1 rows have 2 largest values"):
        native(rows_of(30), [0], np.zeros(2, dtype=np.float32), FILTERS[:1], np.zeros(1))
