"""How many values a body may hold, field by field, counted before any of them becomes an object.

An empty list is two bytes of JSON and fifty of memory, and a dictionary is far more: what a body weighs says little
about what it becomes.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from plimsoll.runtime.server.errors import ApiError, bad_request, invalid_value


class Most(NamedTuple):
    """What one field may hold."""

    values: int = 8192
    """Lists, objects, and members of either."""
    parts: int = 8192
    """Lists, objects and strings, names of members included."""


#: A field that has no limit of its own.
MOST = Most()
#: A message is an object of two or more fields; its content may be a list of parts. There may be 4096 messages.
MESSAGES = Most(values=64 * 1024, parts=128 * 1024)
#: A function has a schema of tens or hundreds of values; agents send a hundred functions.
TOOLS = Most(values=32 * 1024, parts=64 * 1024)
#: Fields of a body, of any name.
FIELDS = 256
#: Lists and objects inside of each other; the parser itself stops at 200.
DEPTH = 100

#: A string, closed or not; a mark that begins or ends a list or an object; what is between these.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]|[^"\[\]{}]++', re.DOTALL)
_STRING, _BEGINS, _ENDS = ord('"'), b"[{", b"]}"


def check_counts(body: bytes | bytearray, limits: Mapping[str, Most]) -> None:
    """Refuses a body with too many values; whether it is JSON is not looked at.

    Takes time in proportion to the body's bytes, and stops at the first value too many.

    Args:
        limits: of fields that may have more or fewer than `MOST`.

    Raises:
        ApiError: 400 that names the field.
    """
    # Marks inside of strings count here as well: where there are few of any kind, there is nothing to look for.
    if sum(body.count(mark) for mark in (b",", b"[", b"{", b'"')) <= FIELDS:
        return
    depth = fields = values = parts = 0
    name, named, most = "", True, MOST
    for match in _TOKEN.finditer(body):
        start, end = match.span()
        first = body[start]
        if first == _STRING:
            if depth == 1 and not named:
                name = body[start + 1 : min(end - 1, start + 81)].decode("utf-8", "replace")
                named, values, parts, most = True, 0, 0, limits.get(name, MOST)
                fields += 1
                if fields > FIELDS:
                    raise bad_request(
                        f"The body has more than {FIELDS} fields, such as {name}.", name, "unknown_parameter"
                    )
            parts += 1
        elif first in _BEGINS:
            depth += 1
            values += 1
            parts += 1
            # The body itself is an object, whose first string is a name.
            named = named and depth != 1
            if depth > DEPTH:
                raise bad_request(
                    f"{name or 'The body'} holds lists or objects nested deeper than {DEPTH}. Send it flatter.",
                    name or None,
                    "invalid_value" if name else "invalid_json",
                )
        elif first in _ENDS:
            depth -= 1
        elif commas := body.count(b",", start, end):
            values += commas
            named = named and depth != 1
        if values > most.values or parts > most.parts:
            raise _too_many(name, most.values if values > most.values else most.parts)


def _too_many(name: str, most: int) -> ApiError:
    if not name:
        return bad_request("The body must be a JSON object.", code="invalid_json")
    return invalid_value(
        f"Too many values in {name}: this server takes up to {most} there, lists, objects and strings included. "
        "Send fewer.",
        name,
    )
