"""Bytes to a request, or to OpenAI's 400 that names the field."""

import difflib
from collections.abc import Sequence
from typing import Any, TypeVar

import pydantic_core
from pydantic import ValidationError

from plimsoll.api.errors import flag
from plimsoll.runtime.server.errors import ApiError, bad_request, invalid_value
from plimsoll.runtime.server.neutral import NEUTRAL
from plimsoll.runtime.server.strict import Strict
from plimsoll.runtime.server.values import kind_of

Parsed = TypeVar("Parsed", bound=Strict)

#: Characters of a value that an error message may quote back.
QUOTED = 80


def parse(body: bytes | bytearray, kind: type[Parsed], ignored: set[str] | None = None) -> Parsed:
    """Reads `body` (JSON, UTF-8) as a `kind`.

    Args:
        ignored: gets the names of fields that are accepted and have no effect here.

    Raises:
        ApiError: 400, for bytes that are not JSON, JSON that nests too deep, and fields that are wrong.
    """
    try:
        return kind.model_validate_json(body, context=ignored)
    except ValidationError as error:
        raise _refusal(error, kind) from None


def checked(data: dict[str, Any], kind: type[Parsed]) -> Parsed:
    """`data`, which another kind of request became, as a `kind`. Raises ApiError as `parse` does."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _refusal(error, kind) from None


def _path(location: Sequence[Any]) -> str | None:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path[:QUOTED] or None


def _refusal(error: ValidationError, kind: type[Strict]) -> ApiError:
    # A field that does not exist says more about a request than a range that is off: it comes first.
    found = error.errors(include_url=False, include_context=False)
    first = next((item for item in found if item["type"] == "extra_forbidden"), found[0])
    message, param = first["msg"], _path(first["loc"])
    if first["type"] == "json_invalid":
        return bad_request(
            f"The body is not valid JSON: {message.removeprefix('Invalid JSON: ')}.", code="invalid_json"
        )
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])
        if len(first["loc"]) > 1:
            return bad_request(f"{param} is not supported by this server.", param, "unsupported_parameter")
        if name in NEUTRAL:
            return bad_request(_unsupported(name, first["input"]), param, "unsupported_parameter")
        close = difflib.get_close_matches(name[:QUOTED], kind.model_fields, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        return bad_request(f"Unrecognized request argument supplied: {param}.{hint}", param, "unknown_parameter")
    if first["type"] == "missing":
        return bad_request(f"You must provide {param}.", param, "missing_required_parameter")
    if param is None and ": " not in message:
        return bad_request("The body must be a JSON object.", code="invalid_json")
    if param is None:
        # Rules over several fields name theirs in front.
        param, message = message.split(": ", 1)
    elif message.startswith("content: "):
        param, message = f"{param}.content", message.removeprefix("content: ")
    return invalid_value(f"Invalid value for {param}: {message}{_quote(first['input'])}.", param)


def _unsupported(name: str, value: Any) -> str:
    known = NEUTRAL[name]
    values = [pydantic_core.to_json(given).decode() for given in known.values]
    allowed = ", ".join(values + ([] if known.also is None else [known.also.words]))
    may = f"; it may be {allowed}" if allowed else ""
    # These fields hold settings: a short word of one is no prompt of anybody's.
    word = isinstance(value, str) and len(value) <= QUOTED // 2 and value.isprintable() and " " not in value
    found = f" (found {value!r})" if word else _quote(value) or f" (found {kind_of(value)})"
    return f"{name} is not supported by this server{' with this value' if allowed else ''}{found}{may}. {known.fix}."


def _quote(value: Any) -> str:
    """Numbers and flags are worth repeating; text might be somebody's prompt."""
    if isinstance(value, bool | int | float):
        return f" (found {(flag(value) if isinstance(value, bool) else str(value))[:QUOTED]})"
    return ""
