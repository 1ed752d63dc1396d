"""Small JSON files: those of strangers are read bounded in size and plain in error, ours are written for people too."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from plimsoll.api.errors import CheckpointError

#: Real configurations are a few KiB and the index of a 1 TB model a few MiB; beyond this the file is not what it says.
MAX_JSON_BYTES = 64 * 1024 * 1024
#: Values and keys. Each becomes an object of Python, of fifty bytes and more; such an index describes 200,000 tensors.
MAX_JSON_VALUES = 1 << 21


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r} appears twice")
    return found


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """Decode UTF-8 JSON that must be one object with unique keys.

    Args:
        where: the file as the user knows it, for the error.

    Raises:
        CheckpointError: more than `MAX_JSON_VALUES` values, not UTF-8, not JSON, nested beyond the parser's depth, or
            not an object.
    """
    # Each value but the first follows one of these. Those inside of strings are counted too: real files have few.
    count = sum(map(text.count, (b",", b":", b"[", b"{")))
    if count > MAX_JSON_VALUES:
        raise CheckpointError(f"holds more than {MAX_JSON_VALUES} values", field=where, value=count)
    try:
        value = json.loads(text.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise CheckpointError(
            "is nested too deeply to be a model's JSON", field=where, fix="Download it again"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"is not valid JSON: {error}", field=where, fix="Download the file again") from None
    if not isinstance(value, dict):
        raise CheckpointError("must be a JSON object", field=where, value=type(value).__name__)
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        CheckpointError: unreadable, larger than `MAX_JSON_BYTES`, or not a JSON object.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise CheckpointError(f"is larger than {MAX_JSON_BYTES} bytes", field=str(path), value=size)
        text = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"cannot be read: {error.strerror}", field=str(path), fix="Check the path and its permissions"
        ) from None
    return parse_object(text, str(path))


def write_object(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` in UTF-8, one key a line. Raises OSError."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
