"""Who may import whom, read from the sources themselves."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.source_tree import everything, imports, links, sources

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
    # Neither in functions nor for type checkers alone: two modules that need each other are one, or three.
    graphlib.TopologicalSorter(links(everything(repository))).prepare()


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
