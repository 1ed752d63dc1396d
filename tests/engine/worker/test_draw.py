"""Draws by torch: the head of a sort, and the end of a distribution."""

import math

import numpy as np
import pytest
import torch

from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.engine.worker.draw import CHUNK, draw, likeliest


@pytest.mark.parametrize("vocabulary", [400, 40_003])
@pytest.mark.parametrize("count", [1, 50, 400])
def test_the_likeliest_are_the_head_of_a_stable_sort(vocabulary: int, count: int) -> None:
    logits = torch.randn(4, vocabulary, generator=torch.Generator().manual_seed(count)) * 5
    logits[1] = logits[1].round()
    logits[2, ::3] = -math.inf
    logits[3, : vocabulary // 2] = -0.0
    logits[3, vocabulary // 2 :] = 0.0
    expected, order = torch.sort(logits, dim=-1, descending=True, stable=True)
    values, ids = likeliest(logits, count)
    assert torch.equal(values, expected[:, :count])
    assert torch.equal(logits.gather(-1, ids), values)
    whole = vocabulary > count * CHUNK * 2 or vocabulary == count
    for row in (0, 1, 2, 3) if whole else (0,):
        assert torch.equal(ids[row], order[row, :count])


def test_the_largest_uniform_number_draws_a_possible_token() -> None:
    last = np.array([1 - 2.0**-53])
    logits = torch.full((1, 1000), -200.0)
    logits[0, 300:700] = torch.linspace(0, 1, 400)
    for top_k, top_p, min_p in [(0, 1.0, 0.0), (0, 1.0, 0.5), (0, 0.9, 0.0), (500, 1.0, 0.0), (3, 1.0, 0.0)]:
        [token] = draw(logits, [SamplingParams(top_k=top_k, top_p=top_p, min_p=min_p)], last)
        assert 300 <= token < 700
