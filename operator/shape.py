"""JSON of any shape as values of the wanted type. What has another type, or a value out of bounds, becomes a default.

Annotations, records and statuses can be written by anybody: nothing here raises.
"""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

#: What Kubernetes' whole numbers and Python's floats both hold.
_MOST = 1 << 62
#: The end of the year 9999, after which no timestamp can be written.
_LATEST = 253402300799.0


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def mappings(value: Any) -> list[Mapping[str, Any]]:
    """The mappings in a list."""
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list | tuple) else []


def text(value: Any, default: str = "") -> str:
    """The value if it is text and not empty, else `default`."""
    return value if isinstance(value, str) and value else default


def whole(value: Any, default: int = 0) -> int:
    """A number as a whole one of at most 62 bits; a string of decimal digits counts too."""
    if isinstance(value, str):
        value = int(value) if len(value) <= 19 and value.isascii() and value.isdecimal() else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return default
    return int(value) if abs(value) <= _MOST else default


def number(value: Any) -> float:
    """A finite number that is not negative; else 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if 0 <= value <= _MOST else 0.0


def moment(value: Any) -> float:
    """Seconds since the epoch that can be written as a timestamp; else 0."""
    found = number(value)
    return found if found <= _LATEST else 0.0


def timestamp(value: Any) -> float:
    """RFC 3339 to seconds since the epoch; 0 for what is none, or lies before the epoch."""
    try:
        return moment(datetime.fromisoformat(value).astimezone(UTC).timestamp()) if isinstance(value, str) else 0.0
    except (ValueError, OverflowError):
        return 0.0


def decoded(value: Any) -> Mapping[str, Any]:
    """The object that a JSON text holds; empty for any other text, also one that is nested too deeply."""
    try:
        return mapping(msgspec.json.decode(value)) if isinstance(value, str) and value else {}
    except (ValueError, RecursionError):
        return {}


def lenient(data: bytes) -> Any:
    """JSON that a strict decoder refuses as a whole for one value in it, without that value.

    Numbers that are out of range or none become null, lone surrogates and bytes that are no UTF-8 become `?`.

    Raises:
        ValueError: it is no JSON in any other way.
    """
    text = shallow(data).decode(errors="replace")
    found = json.loads(text, parse_int=_in_range, parse_float=_finite, parse_constant=lambda _: None, strict=False)
    return _written(found)


def _in_range(digits: str) -> int | None:
    return int(digits) if len(digits) <= 20 and abs(int(digits)) <= 2 * _MOST else None


def _finite(digits: str) -> float | None:
    return value if math.isfinite(value := float(digits)) else None


def _written(value: Any) -> Any:
    """`value` with texts that can be written as UTF-8."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, list):
        return [_written(one) for one in value]
    return {_written(key): _written(one) for key, one in value.items()} if isinstance(value, dict) else value


def shallow(data: bytes, depth: int = 64) -> bytes:
    """JSON with null in place of all that is nested more deeply than `depth`, for decoders that recurse."""
    kept = bytearray()
    level, at, start = 0, 0, 0
    while at < len(data):
        byte = data[at]
        if byte == 0x22:  # A string: brackets in it do not count.
            at += 1
            while at < len(data) and data[at] != 0x22:
                at += 2 if data[at] == 0x5C else 1
        elif byte in b"[{":
            level += 1
            if level == depth + 1:
                kept += data[start:at] + b"null"
        elif byte in b"]}":
            level -= 1
            if level == depth:
                start = at + 1
        at += 1
    return bytes(kept + data[start:]) if level <= depth else bytes(kept)
