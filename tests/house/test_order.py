"""The order of a run."""

from pathlib import Path
from types import SimpleNamespace

from tests.support.longest import LONGEST, longest_first


def test_the_files_that_take_longest_come_first_and_the_rest_as_they_came(repository: Path) -> None:
    tests = repository / "tests"
    assert [name for name in LONGEST if not (tests / name).is_file()] == []
    assert len({*LONGEST}) == len(LONGEST)
    given = [tests / "api/test_b.py", tests / LONGEST[1], tests / "api/test_a.py", tests / LONGEST[0]]
    items = [SimpleNamespace(path=path) for path in given]
    found = [item.path for item in longest_first(tests, items)]
    assert found == [tests / LONGEST[0], tests / LONGEST[1], tests / "api/test_b.py", tests / "api/test_a.py"]
