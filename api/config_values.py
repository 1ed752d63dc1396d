"""Values of a `config.json`, each read as one type or refused by the name of its key."""

import math
from collections.abc import Mapping
from typing import Any

from plimsoll.api.errors import CheckpointError

#: Beyond any published model; a hostile configuration must not make sums overflow or lists explode.
LARGEST = 1 << 31
#: The same for numbers that need not be whole: the base of a rotary embedding is the largest of them.
LARGEST_NUMBER = 1e30


def integer(
    config: Mapping[str, Any], key: str, default: int | None = None, least: int = 1, most: int = LARGEST
) -> int:
    """A whole number from `least` to `most`; null counts as absent. Raises CheckpointError."""
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise CheckpointError("is missing", field=key, fix="Use the config.json that came with the weights")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        limit = "" if most == LARGEST else f", at most {most}"
        raise CheckpointError(f"must be a whole number, {least} or more{limit}", field=key, value=short(value))
    return value


def number(config: Mapping[str, Any], key: str, default: float, most: float = LARGEST_NUMBER) -> float:
    """A number above 0, at most `most`; null counts as absent. Raises CheckpointError."""
    value = config.get(key)
    if value is None:
        return default
    if not is_number(value) or not float(value) > 0:
        raise CheckpointError("must be a number above 0", field=key, value=short(value))
    if float(value) > most:
        raise CheckpointError(f"must be at most {most:g}", field=key, value=short(value))
    return float(value)


def flag(config: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """A boolean; null counts as absent. Raises CheckpointError.

    0, 1 and the words true and false are read as what they say: Python counts the text `"false"` as true.
    """
    value = config.get(key)
    if value is None:
        return default
    word = str(value).strip().lower() if isinstance(value, str | bool | int | float) else ""
    if word in ("true", "1", "1.0"):
        return True
    if word in ("false", "0", "0.0"):
        return False
    raise CheckpointError("must be true or false", field=key, value=short(value))


def is_number(value: object) -> bool:
    """Whether `value` is a finite number, and not a boolean."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def short(value: object) -> object:
    """`value`, or its first 120 characters."""
    text = repr(value)
    return value if len(text) <= 120 else text[:117] + "..."
