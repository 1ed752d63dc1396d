"""The body of a request: JSON, and declared to be.

A browser sends other kinds of body, and those without a kind, to any server without asking it first: a web page could
use a server that takes them.
"""

import re

from fastapi import Request
from starlette.requests import ClientDisconnect

from plimsoll.runtime.server.asgi import ClientGoneError
from plimsoll.runtime.server.errors import ApiError

_JSON = re.compile(r"application/(?:[a-z0-9!#$&^_.-]+\+)?json", re.IGNORECASE)
#: JSON is UTF-8; ASCII is a part of it.
_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})


async def json_body(request: Request) -> bytearray:
    """The body of a request whose Content-Type says JSON.

    Raises:
        ApiError: 415 when it is not declared as JSON in UTF-8, and what `limits.LimitBody` refuses.
        ClientGoneError: the client hung up.
    """
    body = bytearray()
    try:
        # Not `body()`, which would keep it until the request has ended.
        async for part in request.stream():
            body += part
    except ClientDisconnect:
        raise ClientGoneError from None
    check_declared(request.headers.getlist("content-type"))
    return body


def check_declared(kinds: list[str]) -> None:
    """Raises ApiError 415 unless the one Content-Type of a request is JSON, in UTF-8."""
    kind, *parameters = [part.strip() for part in (kinds[0] if len(kinds) == 1 else "").split(";")]
    if not _JSON.fullmatch(kind):
        found = ", ".join(kinds)[:80] or "none"
        raise _unsupported(f"found {found}")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        charset = value.strip().strip('"')
        if name.strip().lower() == "charset" and charset.lower() not in _CHARSETS:
            raise _unsupported(f"found charset {charset[:40]}; JSON is UTF-8")


def _unsupported(found: str) -> ApiError:
    return ApiError(
        415,
        f"The body must be declared as JSON: send Content-Type: application/json ({found}).",
        code="unsupported_media_type",
    )
