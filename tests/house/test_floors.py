"""The floors of the runtime: what each stands on. The core decides without torch, files and clocks."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.source_tree import everything, imports, links, sources

#: What each floor of `runtime` may import besides itself, by the start of the name. `server` stands on all but ranks.
FLOORS = {
    "machine": (),
    "messages": ("engine.core.sampling_params",),
    "config": (),
    "framed": (),
    "grammar": (),
    "kernels": ("machine", "models.weights"),
    "models": ("machine", "kernels"),
    "engine.core": ("messages",),
    "engine.group": ("messages", "config", "framed", "machine", "kernels"),
    "engine.worker": ("messages", "config", "framed", "grammar", "machine", "kernels", "models", "engine.core",
                      "engine.group"),
    "engine.engine": ("messages", "config", "kernels.group_error", "engine.core", "engine.worker", "engine.group"),
    "engine.transport": ("messages", "config", "framed", "machine", "engine.engine", "engine.group.membership"),
    "server": ("messages", "config", "grammar", "vocabulary", "machine", "output", "sampling_defaults",
               "engine.core.sampling_params", "engine.core.thought", "engine.transport", "engine.group"),
}  # fmt: skip
CORE = "plimsoll.runtime.engine.core"
#: All that the core, and what it imports, may take from outside.
PURE = (
    "array",
    "bisect",
    "codecs",
    "collections",
    "dataclasses",
    "hashlib",
    "itertools",
    "math",
    "msgspec",
    "plimsoll",
    "random",
    "typing",
)


def inside(name: str, floor: str) -> bool:
    return name == floor or name.startswith(f"{floor}.")


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_of_the_runtime_stands_on_those_below_it(repository: Path, floor: str) -> None:
    wrong, seen = [], 0
    for name, path, tree in sources(repository, "runtime"):
        if not inside(name, f"plimsoll.runtime.{floor}"):
            continue
        seen += 1
        for wanted in imports(ast.walk(tree)):
            below = wanted.removeprefix("plimsoll.runtime.")
            if below != wanted and not any(inside(below, start) for start in (floor, *FLOORS[floor])):
                wrong.append(f"{path.relative_to(repository)} imports {wanted}")
    assert seen
    assert not wrong


def test_every_module_of_the_engine_is_on_a_floor(repository: Path) -> None:
    names = [name.removeprefix("plimsoll.runtime.") for name, _, _ in sources(repository, "runtime/engine")]
    assert not [name for name in names if name != "engine" and not any(inside(name, floor) for floor in FLOORS)]


def test_the_core_decides_without_torch_files_or_clocks(repository: Path) -> None:
    trees = everything(repository)
    graph = links(trees)
    reached, todo = set(), {name for name in trees if inside(name, CORE)}
    while todo:
        reached |= todo
        todo = {wanted for name in todo for wanted in graph[name]} - reached
    wrong = []
    for name in sorted(reached):
        wrong += [
            f"{name} imports {wanted}"
            for wanted in imports(ast.walk(trees[name]))
            if not any(inside(wanted, pure) for pure in PURE)
        ]
        wrong += [
            f"{name}:{node.lineno} calls {node.func.id}"
            for node in ast.walk(trees[name])
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("open", "print")
        ]
    assert CORE + ".scheduler" in reached
    assert not wrong


def test_importing_the_core_loads_neither_arrays_nor_sockets(repository: Path) -> None:
    modules = [name for name, _, _ in sources(repository, "runtime/engine/core")]
    code = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
print(*sorted({{"torch", "numpy", "zmq", "psutil", "transformers"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
