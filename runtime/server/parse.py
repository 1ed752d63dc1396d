"""Bytes to a request, or to OpenAI's 400 that names the field."""

from collections.abc import Sequence
from typing import Any, TypeVar

import pydantic_core
from pydantic import ValidationError

from plimsoll.runtime.server.errors import ApiError, bad_request
from plimsoll.runtime.server.protocol import NEUTRAL, Strict

Parsed = TypeVar("Parsed", bound=Strict)

#: Characters of a value that an error message may quote back.
QUOTED = 80


def parse(body: bytes, kind: type[Parsed]) -> Parsed:
    """Reads `body` (JSON, UTF-8) as a `kind`.

    Raises:
        ApiError: 400, for bytes that are not JSON, JSON that nests too deep, and fields that are wrong.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error, kind) from None


def _path(location: Sequence[Any]) -> str | None:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path[:QUOTED] or None


def _refusal(error: ValidationError, kind: type[Strict]) -> ApiError:
    # A field that nobody asked for says more about a request than a range that is off: it comes first.
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
            allowed = ", ".join(pydantic_core.to_json(value).decode() for value in NEUTRAL[name])
            note = f" with this value; it may be {allowed}" if allowed else ""
            return bad_request(f"{name} is not supported by this server{note}.", param, "unsupported_parameter")
        return bad_request(f"Unrecognized request argument supplied: {param}.", param, "unknown_parameter")
    if first["type"] == "missing":
        return bad_request(f"You must provide {param}.", param, "missing_required_parameter")
    if param is None and ": " not in message:
        return bad_request("The body must be a JSON object.", code="invalid_json")
    if param is None:
        # Rules over several fields name theirs in front.
        param, message = message.split(": ", 1)
    elif message.startswith("content: "):
        param, message = f"{param}.content", message.removeprefix("content: ")
    return bad_request(f"Invalid value for {param}: {message}{_quote(first['input'])}.", param, "invalid_value")


def _quote(value: Any) -> str:
    """Numbers and flags are worth repeating; text might be somebody's prompt."""
    if isinstance(value, bool | int | float):
        return f" (found {str(value)[:QUOTED]})"
    return ""
