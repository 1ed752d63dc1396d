"""Rules broken on purpose: a module with one piece of its source replaced."""

import inspect
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from types import ModuleType
from typing import Any

import pytest


def broken(module: ModuleType, before: str, after: str) -> ModuleType:
    """`module` as it would be with `after` in place of `before`; the original stays as it is."""
    source = inspect.getsource(module)
    assert source.count(before) == 1, "the mutation no longer fits the source"
    found = ModuleType(f"broken_{module.__name__.rsplit('.', 1)[-1]}")
    sys.modules[found.__name__] = found  # dataclasses look their module up
    exec(source.replace(before, after), found.__dict__)
    return found


def _parameters(test: Any) -> Iterator[dict[str, Any]]:
    tables = []
    for mark in getattr(test, "pytestmark", ()):
        if mark.name == "parametrize":
            names = [one.strip() for one in mark.args[0].split(",")] if isinstance(mark.args[0], str) else mark.args[0]
            rows = (row if len(names) > 1 else (row,) for row in mark.args[1])
            tables.append([dict(zip(names, row, strict=True)) for row in rows])
    for chosen in product(*tables):
        yield {name: value for row in chosen for name, value in row.items()}


def notices(test: Callable[..., object]) -> bool:
    """Whether a test fails, as a plain call, with any set of its parameters."""
    return any(_fails(partial(test, **given)) for given in _parameters(test))


def _fails(scenario: Callable[[], object]) -> bool:
    try:
        scenario()
    except (Exception, pytest.fail.Exception):
        return True
    return False
