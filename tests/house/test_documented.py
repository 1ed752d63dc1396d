"""Every public name of the product says what it is."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.source_tree import FOLDERS, everything, sources

Named = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

#: Exempt: the life of a thing, by methods that take and return nothing.
LIFE = ("start", "stop", "join", "close")
#: Bases that give a class no methods of their own to override.
PLAIN = {"ABC", "Protocol", "NamedTuple", "Exception", "BaseModel", "Struct", "Enum", "Generic"}


def public(body: list[ast.stmt]) -> Iterator[Named]:
    for node in body:
        if isinstance(node, Named) and not node.name.startswith("_"):
            yield node


def bases(node: ast.ClassDef) -> Iterator[str]:
    for base in node.bases:
        yield re.split(r"[.\[]", ast.unparse(base).split("[")[0])[-1]


def documented_above(node: ast.ClassDef, method: str, classes: Mapping[str, ast.ClassDef]) -> bool:
    """Exempt: what a base documents, a class of ours, one of another library, or one that `See `X`.` names."""
    seen = re.findall(r"^See `(\w+)`", ast.get_docstring(node) or "")
    for base in (*bases(node), *seen):
        if base in PLAIN:
            continue
        if base not in classes:
            return True
        found = next((one for one in public(classes[base].body) if one.name == method), None)
        if (found and ast.get_docstring(found)) or documented_above(classes[base], method, classes):
            return True
    return False


def obvious(node: Named) -> bool:
    """Exempt: a property of one statement, whose name and type say it; and the life of a thing."""
    if isinstance(node, ast.ClassDef):
        return False
    if any(isinstance(one, ast.Name) and one.id == "property" for one in node.decorator_list):
        return node.end_lineno is not None and node.end_lineno - node.lineno <= 2
    alone = len(node.args.args) == 1 and isinstance(node.returns, ast.Constant) and node.returns.value is None
    return node.name in LIFE and alone


def silent(tree: ast.Module, classes: Mapping[str, ast.ClassDef]) -> Iterator[str]:
    """Public names of a module that have no docstring and need one."""
    if not ast.get_docstring(tree):
        yield "the module"
    for node in public(tree.body):
        if not ast.get_docstring(node):
            yield node.name
        for inner in public(node.body) if isinstance(node, ast.ClassDef) else ():
            if ast.get_docstring(inner) or obvious(inner) or documented_above(node, inner.name, classes):
                continue
            yield f"{node.name}.{inner.name}"


@pytest.fixture(scope="module")
def classes(repository: Path) -> dict[str, ast.ClassDef]:
    """Classes of the product by name."""
    trees = everything(repository).values()
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_public_name_says_what_it_is(repository: Path, classes: dict[str, ast.ClassDef], folder: str) -> None:
    found = list(sources(repository, folder))
    assert found
    assert not [f"{path.relative_to(repository)}: {name}" for _, path, tree in found for name in silent(tree, classes)]


def test_a_silent_name_is_found() -> None:
    tree = ast.parse(
        '"""A module."""\nclass Box:\n    """A box."""\n    def lift(self, by: int) -> None: ...\ndef go(): ...'
    )
    assert list(silent(tree, {})) == ["Box.lift", "go"]
