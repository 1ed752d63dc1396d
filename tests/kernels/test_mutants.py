"""The mutants that `python -m tests.kernels.mutants` builds are changes of the kernels as they are."""

from pathlib import Path

import pytest

from tests.kernels.mutants import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_a_mutant_changes_one_place_of_its_source_and_names_tests_that_exist(mutant: Mutant, repository: Path) -> None:
    source = (repository / "runtime" / "kernels" / "csrc" / mutant.source).read_text()

    assert source.count(mutant.before) == 1
    assert mutant.after != mutant.before
    assert all((Path(__file__).parent / test).is_file() for test in mutant.tests)
