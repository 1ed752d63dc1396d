"""Where two pictures of the cluster differ: of thousands of lines, the few that somebody has to read."""

from collections.abc import Iterator
from typing import Any

#: In place of what only one of the two has.
NOTHING = "nothing"


def differences(first: Any, second: Any) -> dict[str, tuple[Any, Any]]:
    """Path to (what is there in `first`, what is there in `second`), of plain data; empty where both are equal.

    Objects of a list are told apart by metadata.name, condition type or container name, where they have one.
    """
    return dict(_differing(first, second, ""))


def _differing(first: Any, second: Any, path: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(first, list) and isinstance(second, list):
        first, second = _keyed(first), _keyed(second)
    if not (isinstance(first, dict) and isinstance(second, dict)):
        if first != second:
            yield path, (first, second)
        return
    for key in sorted({*first, *second}):
        yield from _differing(first.get(key, NOTHING), second.get(key, NOTHING), f"{path}/{key}")


def _keyed(items: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, item in enumerate(items):
        name = _name(item) or str(number)
        found[name if name not in found else f"{name} {number}"] = item
    return found


def _name(item: Any) -> str:
    if not isinstance(item, dict):
        return ""
    about = item.get("metadata")
    return str((about.get("name") if isinstance(about, dict) else None) or item.get("type") or item.get("name") or "")
