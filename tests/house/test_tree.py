"""What the files of the tree may be called, how long they may be, and what they may not give away."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDERS = ("api", "checkpoint", "operator", "runtime", "quantjob", "cli")
STARTS = (".", "plimsoll", *FOLDERS, *(f"plimsoll/{name}" for name in FOLDERS), "tests", "benchmarks", "examples")
LONGEST = 400


def tracked(repository: Path) -> list[Path]:
    """Files git knows or would add: neither ignored ones nor symbolic links."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout.split("\0")
    return [path for name in listed if name and (path := repository / name).is_file() and not path.is_symlink()]


@pytest.mark.parametrize("start", STARTS)
def test_python_started_anywhere_finds_its_own_operator(repository: Path, start: str) -> None:
    # -S keeps `site` from importing things before the folder's own files could be in the way.
    code = "import operator, functools, json, subprocess; print(operator.__file__, operator.itemgetter(1)('ab'))"
    for options in ([], ["-S"]):
        done = subprocess.run(
            [sys.executable, *options, "-c", code], cwd=repository / start, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        place, letter = done.stdout.split()
        assert Path(place) == Path(os.__file__).with_name("operator.py")
        assert letter == "b"


@pytest.mark.parametrize("start", [".", "plimsoll", "operator"])
def test_python_started_as_a_module_finds_its_own_operator(repository: Path, start: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "timeit", "-n1", "-r1", "import operator; operator.itemgetter"],
        cwd=repository / start, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_pytest_itself_runs_with_the_librarys_operator() -> None:
    import operator

    assert Path(operator.__file__) == Path(os.__file__).with_name("operator.py")
    assert not (Path(__file__).parents[2] / "operator" / "__init__.py").exists()


def test_no_module_takes_the_name_of_one_of_pythons_own(repository: Path) -> None:
    # Python started in that folder would import ours instead, and fail in a place that says nothing about it.
    names = [p for f in FOLDERS for p in (repository / f).rglob("*.py") if p.stem in sys.stdlib_module_names]
    assert not [str(path.relative_to(repository)) for path in names]


def test_no_file_is_longer_than_a_sitting(repository: Path) -> None:
    long = {}
    for path in tracked(repository):
        # CRDs and their reference pages are generated.
        generated = path.parent.name == "crds" or path.name.startswith("reference")
        if path.suffix in (".py", ".c", ".h", ".sh", ".toml", ".yaml", ".md", "") and not generated:
            lines = path.read_text().count("\n")
            if lines > LONGEST and path.name != "LICENSE":
                long[str(path.relative_to(repository))] = lines
    assert not long


def test_no_file_names_a_place_on_somebodys_machine(repository: Path) -> None:
    private = re.compile("|".join([re.escape(str(repository)) + r"\b", r"/(?:root|work)/\w", r"/(?:home|Users)/\w+/"]))
    wrong = {}
    for path in tracked(repository):
        text = path.read_bytes()
        if b"\0" not in text and (found := private.search(text.decode(errors="replace"))):
            wrong[str(path.relative_to(repository))] = found.group()
    wrong.pop(str(Path(__file__).relative_to(repository)), None)
    assert not wrong
