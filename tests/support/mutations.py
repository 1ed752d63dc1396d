"""Rules broken on purpose: a module with one piece of its source replaced."""

import inspect
import sys
from types import ModuleType


def broken(module: ModuleType, before: str, after: str) -> ModuleType:
    """`module` as it would be with `after` in place of `before`; the original stays as it is."""
    source = inspect.getsource(module)
    assert source.count(before) == 1, "the mutation no longer fits the source"
    found = ModuleType(f"broken_{module.__name__.rsplit('.', 1)[-1]}")
    sys.modules[found.__name__] = found  # dataclasses look their module up
    exec(source.replace(before, after), found.__dict__)
    return found
