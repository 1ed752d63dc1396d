"""How many values a body may hold, field by field, counted before any of them becomes an object.

An empty list is two bytes of JSON and fifty of memory, and a dictionary is far more: what a body weighs says little
about what it becomes.
"""

import re
from collections.abc import Mapping

from plimsoll.runtime.server.errors import ApiError, bad_request

#: Values that one field may hold, its lists and objects included, unless `LIMITS` says otherwise.
VALUES = 8192
#: A message is an object of two or more fields; its content may be a list of parts. There may be 4096 messages.
MESSAGE_VALUES = 64 * 1024
#: Fields of a body, by whatever name.
FIELDS = 256

#: A string, closed or not, or a mark that begins a list or an object, ends one, or parts two values.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{},]', re.DOTALL)


def check_counts(body: bytes | bytearray, limits: Mapping[str, int]) -> None:
    """Refuses a body with too many values; whether it is JSON is not looked at.

    Takes time in proportion to the body's bytes, and stops at the first value too many.

    Args:
        limits: the most values of fields that may have more or fewer than `VALUES`.

    Raises:
        ApiError: 400 that names the field.
    """
    # Marks inside of strings count here as well: where there are few of any kind, there is nothing to look for.
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) <= min(FIELDS, VALUES, *limits.values()):
        return
    depth, fields, values, most = 0, 0, 0, VALUES
    name, named = "", True
    for match in _TOKEN.finditer(body):
        token = match.group() if match.end() - match.start() == 1 else b'"'
        if token == b'"':
            if depth == 1 and not named:
                name = body[match.start() + 1 : min(match.end() - 1, match.start() + 81)].decode("utf-8", "replace")
                named, values, most = True, 0, limits.get(name, VALUES)
                fields += 1
                if fields > FIELDS:
                    raise bad_request(
                        f"The body has more than {FIELDS} fields, such as {name}.", name, "unknown_parameter"
                    )
            continue
        if token in b"]}":
            depth -= 1
            continue
        if token == b",":
            named = named and depth != 1
        else:
            depth += 1
            # The body itself is an object, whose first string is a name.
            named = named and depth != 1
        values += 1
        if values > most:
            raise _too_many(name, most)


def _too_many(name: str, most: int) -> ApiError:
    if not name:
        return bad_request("The body must be a JSON object.", code="invalid_json")
    return bad_request(
        f"Too many values in {name}: this server takes up to {most} there, lists and objects included. Send fewer.",
        name,
        "invalid_value",
    )
