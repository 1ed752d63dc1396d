"""Plain words: what users read holds no turn over which readers of English as a second language stumble."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from plimsoll.cli.main import build
from tests.support.source_tree import FOLDERS, sources

#: Regular expressions of archaic or riddling turns, and what to write in their place.
TURNS = {
    "told": "say who says what to whom: `the operator logs`, `the flag sets`",
    "nobody|no one": "make the subject positive: `no client`, `the pod does not`",
    "whoever|whomever": "name them: `a user who`, `the process that`",
    "whatever": "name it: `any`, `every`, `regardless of`",
    "wherefore|whence|thence|whereby|wherein|whereof": "start a new sentence",
    "thereof|therein|thereby|thereupon|hereby|hitherto": "start a new sentence",
    "lest": "so that … does not",
    "anew|afresh": "again, from the start",
    "shall": "must, should, or the present tense",
    "unto|betwixt|amidst|whilst|albeit|naught|nought": "the modern word",
    "for want of": "because there is not enough, out of memory",
    "(?:go|goes|going|gone|went) without": "cannot be combined with, has no",
    "asked of": "the settings of, the request to",
    "held to be": "is, counts as",
    "vouch(?:es|ed|ing)? for": "proves, confirms",
    "upgraded? along": "`helm upgrade` also upgrades",
    "in (?:its|their) stead": "instead of, replaces",
    "would have it": "name what happens",
}
BANNED = re.compile(rf"\b(?:{'|'.join(TURNS)})\b".replace(" ", r"[\s#*]+"), re.IGNORECASE)
#: Texts outside Python, by pattern. The prose of the examples is what models are measured on: literature, not ours.
TEXTS = (
    "*.md", "docs/*.md", "crds/*.yaml", "examples/**/*.yaml", "examples/**/*.md",
    *(f"charts/**/*.{ending}" for ending in ("md", "yaml", "tpl", "txt", "json")),
)  # fmt: skip


def turns(text: str) -> Iterator[tuple[int, str]]:
    """(line from 0, turn) of each banned turn, one that a line break or a comment sign cuts included."""
    for found in BANNED.finditer(text):
        yield text[: found.start()].count("\n"), " ".join(re.findall(r"\w+", found.group()))


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, text) of each string of a module: docstrings, messages, help. One word alone is data."""
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and id(node) not in inside and " " in str(node.value):
            yield node.lineno, str(node.value)


def comments(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each comment, and of a string that looks like one."""
    for found in re.finditer(r"(?:^|  ) *#:? .*(?:\n *#.*)*", source, re.MULTILINE):
        yield source[: found.start()].count("\n") + 1, found.group()


def commands(app: typer.Typer) -> Iterator[tuple[str, list[str]]]:
    """(name, help texts) of the application and of each command, the hidden ones included."""
    root = typer.main.get_command(app)
    for name, one in [("plimsoll", root), *root.commands.items()]:
        yield name, [one.help or "", *(option.help or "" for option in one.params if hasattr(option, "help"))]


def test_the_list_finds_a_turn_wherever_a_line_ends() -> None:
    assert list(turns("a\nServes Whoever asks; the CRDs are upgraded\n  # along.")) == [
        (1, "Whoever"),
        (1, "upgraded along"),
    ]
    assert not list(turns("untold shallow goes on without"))


def test_pages_charts_and_crds_use_plain_words(repository: Path) -> None:
    paths = {path for pattern in TEXTS for path in repository.glob(pattern)}
    assert len(paths) > 60
    wrong = [
        f"{path.relative_to(repository)}:{line + 1}: {turn}"
        for path in sorted(paths)
        for line, turn in turns(path.read_text())
    ]
    assert not wrong, TURNS


@pytest.mark.parametrize("folder", FOLDERS)
def test_messages_docstrings_and_comments_use_plain_words(repository: Path, folder: str) -> None:
    wrong = [
        f"{path.relative_to(repository)}:{start + line}: {turn}"
        for _, path, tree in sources(repository, folder)
        for start, text in (*strings(tree), *comments(path.read_text()))
        for line, turn in turns(text)
    ]
    assert not wrong, TURNS


def test_help_of_every_command_uses_plain_words() -> None:
    helps = dict(commands(build()))
    assert {"plimsoll", "plan", "up", "serve"} <= helps.keys()
    assert sum(bool(text) for texts in helps.values() for text in texts) > 100
    wrong = [(name, turn) for name, texts in helps.items() for text in texts for _, turn in turns(text)]
    assert not wrong, TURNS
