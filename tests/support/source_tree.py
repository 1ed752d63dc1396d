"""The product's sources as syntax trees: which modules there are, and what each of them imports."""

import ast
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

FOLDERS = ("api", "checkpoint", "runtime", "quantjob", "operator", "cli")


def sources(repository: Path, folder: str) -> Iterator[tuple[str, Path, ast.Module]]:
    """(import name, file, tree) of every module under a folder of the repository."""
    for path in sorted((repository / folder).rglob("*.py")):
        parts = path.relative_to(repository).with_suffix("").parts
        name = ".".join(["plimsoll", *parts]).removesuffix(".__init__")
        yield name, path, _parsed(path)


@functools.cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imports(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Dotted names; `from a.b import c` yields `a.b.c`, whether c is a module or not."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ("." * node.level + f"{node.module or ''}.{alias.name}" for alias in node.names)


def everything(repository: Path) -> dict[str, ast.Module]:
    """Every module of the product by its import name."""
    return {name: tree for folder in FOLDERS for name, _, tree in sources(repository, folder)}


def links(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Which of the modules each imports: when it is imported, later in a function, or for type checkers alone."""
    graph: dict[str, set[str]] = {}
    for name, tree in trees.items():
        wanted = set(imports(ast.walk(tree)))
        graph[name] = {w if w in trees else w.rpartition(".")[0] for w in wanted} & trees.keys() - {name}
    return graph
