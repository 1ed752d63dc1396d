"""The commands of benchmarks that pages name: each is taken as it stands there."""

import argparse
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(
    {
        (script, arguments.strip())
        for page in (ROOT / "docs").glob("*.md")
        for script, arguments in re.findall(r"`python -m\s+benchmarks\.(\w+)([^`]*)`", page.read_text())
    }
)


class Taken(BaseException):
    """The command line is read: nothing has started yet."""


@pytest.fixture
def parsers(monkeypatch: pytest.MonkeyPatch) -> list[argparse.ArgumentParser]:
    """The parsers that read a whole command line, each of which ends what called it."""
    found: list[argparse.ArgumentParser] = []
    read = argparse.ArgumentParser.parse_known_args

    def parse_known_args(self: argparse.ArgumentParser, *arguments: Any) -> Any:
        taken, unknown = read(self, *arguments)
        if not self.add_help:
            return taken, unknown
        assert not unknown
        found.append(self)
        raise Taken

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
    return found


@pytest.mark.parametrize(("script", "arguments"), COMMANDS, ids=[" ".join(command) for command in COMMANDS])
def test_a_command_of_a_page_is_taken_and_its_defaults_are_among_the_choices(
    script: str, arguments: str, parsers: list[argparse.ArgumentParser], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"benchmarks.{script}")
    monkeypatch.setattr(sys, "argv", [script, *arguments.split()])
    with pytest.raises(Taken):
        module.main()
    for action in parsers[0]._actions:
        chosen = action.default if isinstance(action.default, list | tuple) else [action.default]
        assert action.choices is None or action.default is None or set(chosen) <= {*action.choices}, action.dest
