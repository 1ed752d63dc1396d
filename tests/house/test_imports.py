"""Who may import whom, read from the sources themselves."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

#: What each root folder may import, itself included. `cli` ties everything together.
MAY_IMPORT = {
    "api": {"api"},
    "checkpoint": {"api", "checkpoint"},
    "runtime": {"api", "checkpoint", "runtime"},
    "quantjob": {"api", "checkpoint", "runtime", "quantjob"},
    "operator": {"api", "checkpoint", "operator"},
    "cli": {"api", "checkpoint", "runtime", "quantjob", "operator", "cli"},
}
#: The contract is pure: no files, no processes, no network, no arrays.
IO_MODULES = {
    "asyncio", "gguf", "http", "httpx", "huggingface_hub", "io", "mmap", "multiprocessing", "numpy", "os", "pathlib",
    "psutil", "requests", "safetensors", "shutil", "signal", "socket", "subprocess", "tempfile", "threading", "torch",
    "transformers", "urllib", "zmq",
}  # fmt: skip


def sources(repository: Path, folder: str) -> Iterator[tuple[str, Path, ast.Module]]:
    for path in sorted((repository / folder).rglob("*.py")):
        parts = path.relative_to(repository).with_suffix("").parts
        name = ".".join(["plimsoll", *parts]).removesuffix(".__init__")
        yield name, path, ast.parse(path.read_text(), filename=str(path))


def imports(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Dotted names; `from a.b import c` yields `a.b.c`, whether c is a module or not."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ("." * node.level + f"{node.module or ''}.{alias.name}" for alias in node.names)


def at_import_time(tree: ast.AST) -> Iterator[ast.AST]:
    """Statements that run when the module is imported: not those in functions, nor those for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from at_import_time(node)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_what_the_design_allows(repository: Path, folder: str) -> None:
    wrong = []
    for _, path, tree in sources(repository, folder):
        for name in imports(ast.walk(tree)):
            top, *rest = name.split(".")
            if top == "plimsoll" and rest and rest[0] != "__version__" and rest[0] not in MAY_IMPORT[folder]:
                wrong.append(f"{path.relative_to(repository)} imports {name}")
    assert not wrong


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_go_through_the_package_name(repository: Path, folder: str) -> None:
    # Reached as bare `api` or relatively, a module would exist twice, and its classes would not be equal.
    bare = set(MAY_IMPORT) - {"operator"}
    wrong = [
        f"{path.relative_to(repository)} imports {name}"
        for _, path, tree in sources(repository, folder)
        for name in imports(ast.walk(tree))
        if name.startswith(".") or name.split(".")[0] in bare
    ]
    assert not wrong


def test_modules_import_each_other_without_a_circle(repository: Path) -> None:
    trees = {name: tree for folder in MAY_IMPORT for name, _, tree in sources(repository, folder)}
    graph: dict[str, set[str]] = {}
    for name, tree in trees.items():
        wanted = set(imports(at_import_time(tree)))
        known = {w if w in trees else w.rpartition(".")[0] for w in wanted}
        graph[name] = (known & trees.keys()) - {name}
    graphlib.TopologicalSorter(graph).prepare()


def test_the_contract_does_no_io(repository: Path) -> None:
    wrong = []
    for _, path, tree in sources(repository, "api"):
        wrong += [f"{path.name} imports {n}" for n in imports(ast.walk(tree)) if n.split(".")[0] in IO_MODULES]
        wrong += [
            f"{path.name}:{node.lineno} calls {node.func.id}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("open", "print")
        ]
    assert not wrong


@pytest.mark.parametrize("folder", ["api", "checkpoint", "operator"])
def test_importing_what_the_operator_stands_on_leaves_torch_out(repository: Path, folder: str) -> None:
    modules = [name for name, _, _ in sources(repository, folder)]
    code = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
print(*sorted({{"torch", "transformers"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_operator_never_names_torch(repository: Path) -> None:
    wrong = [
        f"{path.relative_to(repository)} imports {name}"
        for _, path, tree in sources(repository, "operator")
        for name in imports(ast.walk(tree))
        if name.split(".")[0] in ("torch", "transformers")
    ]
    assert not wrong
