"""Every family by the class name of its models."""

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache

from plimsoll.api import families
from plimsoll.api.errors import CheckpointError
from plimsoll.api.families.family import Family


@cache
def all_families() -> Mapping[str, Family]:
    """Class name to family, sorted by the name of the file, then in the order of its `FAMILIES`."""
    found: dict[str, Family] = {}
    for module in sorted(pkgutil.iter_modules(families.__path__), key=lambda one: one.name):
        loaded = importlib.import_module(f"{families.__name__}.{module.name}")
        found |= {family.architecture: family for family in getattr(loaded, "FAMILIES", ())}
    return found


def find_family(architecture: str) -> Family:
    """Raises CheckpointError for a class that is not run, listing those that are."""
    known = all_families()
    if architecture not in known:
        raise CheckpointError(
            "this architecture is not run", field="architectures", value=architecture,
            fix=f"Known: {', '.join(sorted(known))}",
        )  # fmt: skip
    return known[architecture]
