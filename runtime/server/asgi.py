"""The outermost layer: every request gets an id, a line in the log, and, after any failure, an error body."""

import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

import structlog
from starlette.responses import Response

from plimsoll.runtime.server.drain import Gate
from plimsoll.runtime.server.errors import ApiError
from plimsoll.runtime.server.messages_api import errors as messages_api

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Probes and scrapes come every few seconds; their lines would bury the others.
QUIET_PATHS = frozenset({"/health", "/ready", "/metrics"})
#: Key of a scope: names of the request's fields that were accepted and have no effect, for `IGNORED_HEADER`.
IGNORED = "plimsoll.ignored"
#: Key of a scope: names the caller's part of the prefix cache. Absent where requests need no key.
PARTITION = "plimsoll.partition"
IGNORED_HEADER = b"x-plimsoll-ignored"
#: Bytes of that header: a client can send many names.
IGNORED_BYTES = 1024


class ClientGoneError(Exception):
    """The client hung up, so no answer is needed."""


def error_response(error: ApiError, scope: Scope) -> Response:
    """The response for an error, in the shape of the API that the request is for."""
    ours = scope["path"].startswith(messages_api.PATH)
    body = messages_api.encoded(error, scope.get("request_id", "")) if ours else error.encoded()
    return Response(body, error.status, error.headers, "application/json")


def listed(names: Sequence[str]) -> bytes:
    """The value of `IGNORED_HEADER`. A name may be a client's own text: what is not printable ASCII becomes `?`."""
    text = ", ".join("".join(one if " " < one <= "~" and one != "," else "?" for one in name) for name in names)
    return text.encode() if len(text) <= IGNORED_BYTES else text[:IGNORED_BYTES].rpartition(",")[0].encode() + b", ..."


class Headless:
    """ASGI middleware: HEAD is answered as GET is, without the body."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def bare(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.body":
                message["body"] = b""
            await send(message)

        await self.app({**scope, "method": "GET"}, receive, bare)


class Boundary:
    """ASGI middleware around everything. Logs method, path, status and seconds: never a prompt, an answer or a key.

    While the server drains, each response ends its connection: the client's next request goes to another server.
    """

    def __init__(self, app: App, gate: Gate) -> None:
        self.app, self.gate = app, gate
        self.log = structlog.get_logger("plimsoll.server")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        request_id = secrets.token_hex(12)
        scope["request_id"] = request_id
        start = time.monotonic()
        status = 0
        quiet = scope["path"] in QUIET_PATHS
        if not quiet:
            self.gate.arrived()

        async def marked(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                named = [(b"x-request-id", request_id.encode())]
                if scope["path"].startswith(messages_api.PATH):
                    # Anthropic's name for it, which its client shows.
                    named.append((b"request-id", request_id.encode()))
                message["headers"] = [*message.get("headers", ()), *named]
                if ignored := scope.get(IGNORED):
                    message["headers"].append((IGNORED_HEADER, listed(ignored)))
                if self.gate.draining:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            await self.app(scope, receive, marked)
        except ClientGoneError:
            pass
        except ApiError as error:
            if not status:
                await error_response(error, scope)(scope, receive, marked)
        except Exception:
            self.log.exception("request failed", request_id=request_id, path=scope["path"])
            if not status:
                failure = ApiError(500, "The server failed on this request.", code="internal_error")
                await error_response(failure, scope)(scope, receive, marked)
        # A 503 is a probe's answer, not a failure of the probe.
        if not quiet or status not in (200, 503):
            seconds = round(time.monotonic() - start, 4)
            self.log.info(
                "request",
                request_id=request_id,
                method=scope["method"],
                path=scope["path"][:200],
                # nginx's number for a client that left before there was anything to send.
                status=status or 499,
                seconds=seconds,
            )
