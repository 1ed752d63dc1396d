"""The best of a row, taken over parts of a vocabulary, is the best of the whole row."""

import itertools

import numpy as np
import pytest
import torch

from plimsoll.runtime.models.best import best_of, best_of_packed, packed

WORDS = 40


def rows() -> torch.Tensor:
    """Random logits of few values, so that most rows have ties; NaN, infinities and zeros of both signs."""
    made = torch.randint(-4, 4, (400, WORDS), generator=torch.Generator().manual_seed(1)).float()
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 3.0])
    for index in range(200):
        made[index, index * 7 % WORDS] = odd[index % 6]
        made[index, index * 13 % WORDS] = odd[index // 6 % 6]
    made[200:206] = odd[:, None]
    return made


@pytest.mark.parametrize("cuts", [(0, 40), (0, 20, 40), (0, 14, 27, 40), (0, 1, 2, 3, 40)])
def test_parts_have_the_first_largest_of_the_whole(cuts: tuple[int, ...]) -> None:
    logits = rows()
    wanted = best_of(logits)
    assert len(set(wanted.ids.tolist())) > 10
    parts = [packed(best_of(logits[:, start:stop]), start) for start, stop in itertools.pairwise(cuts)]
    found = best_of_packed(torch.cat(parts, 1))
    assert np.array_equal(found.ids, wanted.ids)
    assert np.array_equal(found.values.view(np.int32), wanted.values.view(np.int32))


def test_no_rows_have_no_best() -> None:
    assert len(best_of_packed(packed(best_of(torch.empty(0, WORDS)), 0)).ids) == 0


def test_large_ids_survive() -> None:
    logits = torch.zeros(1, 5)
    logits[0, 3] = 1.0
    assert best_of_packed(packed(best_of(logits), (1 << 30) - 1)).ids.tolist() == [(1 << 30) + 2]
