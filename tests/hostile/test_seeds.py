"""Damaged copies of the seed corpus: the first cases of each fuzzer of `tests/support/fuzz_readers.py`."""

from pathlib import Path

import pytest

from tests.support.fuzz_readers import SURFACES, case, seeds, use, wrong

#: Cases of each surface, and how many are run as one test.
CASES, TOGETHER = 120, 40


@pytest.mark.parametrize("surface", SURFACES)
def test_the_seeds_themselves_are_read(surface: str) -> None:
    for seed in seeds(surface):
        use(seed)


@pytest.mark.parametrize("first", range(0, CASES, TOGETHER))
@pytest.mark.parametrize("surface", SURFACES)
def test_a_damaged_checkpoint_is_read_or_refused_in_plain_words(surface: str, first: int, tmp_path: Path) -> None:
    found = {}
    for number in range(first, first + TOGETHER):
        place = tmp_path / str(number)
        place.mkdir()
        if what := wrong(case(surface, number, place)):
            found[number] = what
    assert not found
