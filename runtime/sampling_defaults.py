"""What a checkpoint's `generation_config.json` recommends for requests that do not say."""

import math
from collections.abc import Mapping
from typing import Any

#: Fields that are taken, as in vLLM, with the least and the largest value and what is allowed in words.
DEFAULTED: Mapping[str, tuple[float, float, str]] = {
    "temperature": (0.0, 2.0, "between 0 and 2"),
    "top_p": (math.ulp(0.0), 1.0, "above 0, at most 1"),
    "top_k": (-1.0, 2**31 - 1.0, "a whole number, -1 or more"),
    "min_p": (0.0, 1.0, "between 0 and 1"),
    "repetition_penalty": (0.01, 100.0, "between 0.01 and 100"),
}


def sampling_defaults(generation_config: Mapping[str, Any]) -> tuple[dict[str, float], tuple[str, ...]]:
    """The values that a request could set as well, by name, and a sentence on each of the others.

    `top_k` of 0 and -1 both mean all tokens; 0 is returned.
    """
    found: dict[str, float] = {}
    notices = []
    for name, (least, most, allowed) in DEFAULTED.items():
        given = generation_config.get(name)
        if given is None:
            continue
        value = _number(given)
        if value is None or not least <= value <= most or (name == "top_k" and not value.is_integer()):
            notices.append(f"generation_config.json: {name} {str(given)[:80]!r} is not used: it must be {allowed}")
        else:
            found[name] = max(0, int(value)) if name == "top_k" else value
    return found, tuple(notices)


def _number(value: object) -> float | None:
    """`value` as a number, also where it is written as text; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
