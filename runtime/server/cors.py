"""What lets a browser show a page the answers it may have.

A browser asks first (a preflight) before it sends JSON or a key to another origin, and shows a page only answers that
name its origin. `visitors` says which pages may.
"""

from collections.abc import MutableMapping
from typing import Any

from starlette.responses import Response

from plimsoll.runtime.server.asgi import App, Receive, Scope, Send, error_response
from plimsoll.runtime.server.visitors import Visitors, origin_refused

#: Seconds a browser may keep the answer to a preflight.
MAX_AGE = 600
EXPOSED = "X-Request-Id, Retry-After, X-Plimsoll-Ignored"


class Cors:
    """ASGI middleware around everything: answers preflights, and names the origin in answers to its pages."""

    def __init__(self, app: App, visitors: Visitors) -> None:
        self.app, self.visitors = app, visitors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = {} if scope["type"] != "http" else {name: value.decode("latin-1") for name, value in scope["headers"]}
        origin = given.get(b"origin")
        if origin is None:
            await self.app(scope, receive, send)
            return
        allowed = self.visitors.allows(origin)
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in given:
            await self._preflight(scope, origin, allowed, given)(scope, receive, send)
            return

        async def marked(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                named = [(b"access-control-allow-origin", origin.encode("latin-1"))] if allowed else []
                exposed = [(b"access-control-expose-headers", EXPOSED.encode())] if allowed else []
                message["headers"] = [*message.get("headers", ()), *named, *exposed, (b"vary", b"Origin")]
            await send(message)

        await self.app(scope, receive, marked)

    def _preflight(self, scope: Scope, origin: str, allowed: bool, asked: MutableMapping[bytes, str]) -> Response:
        refusal = self.visitors.refusal(scope) or (None if allowed else origin_refused(origin))
        if refusal is not None:
            return error_response(refusal, scope)
        headers = {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Methods": "GET, POST, DELETE, OPTIONS",
            "Access-Control-Max-Age": str(MAX_AGE),
            "Vary": "Origin, Access-Control-Request-Headers",
        }
        if wanted := asked.get(b"access-control-request-headers"):
            headers["Access-Control-Allow-Headers"] = wanted
        # Chrome asks before a page of a public address reaches a private one.
        if asked.get(b"access-control-request-private-network") == "true":
            headers["Access-Control-Allow-Private-Network"] = "true"
        return Response(headers=headers)
