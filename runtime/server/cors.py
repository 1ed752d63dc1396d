"""Which web pages may use this server from a browser.

A browser asks first (a preflight) before it sends JSON or a key to another origin, and shows a page only answers that
name its origin. With keys every origin may ask: the key decides. A server without keys answers everybody who reaches
it, and a browser on this machine reaches what listens on loopback: then only pages of this machine may, unless the
server's owner lists more.
"""

import re
from collections.abc import MutableMapping, Sequence
from typing import Any

from starlette.responses import Response

from plimsoll.runtime.server.asgi import App, Receive, Scope, Send, error_response
from plimsoll.runtime.server.errors import ApiError

ANY = "*"
OPTION = "--allowed-origins"
LOOPBACK = re.compile(r"https?://(localhost|[a-z0-9-]+\.localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?")
#: Seconds a browser may keep the answer to a preflight.
MAX_AGE = 600
EXPOSED = "X-Request-Id, Retry-After"


class Cors:
    """ASGI middleware around everything: answers preflights, and names the origin in answers to its pages.

    Args:
        app: the application.
        origins: as `https://app.example`; `*` is every one. Empty: pages of this machine, or all where there are keys.
        keys: whether requests need a key.
    """

    def __init__(self, app: App, origins: Sequence[str], keys: bool) -> None:
        self.app, self.origins, self.keys = app, frozenset(origins), keys

    def allows(self, origin: str) -> bool:
        if self.origins:
            return ANY in self.origins or origin in self.origins
        return self.keys or LOOPBACK.fullmatch(origin) is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = {} if scope["type"] != "http" else {name: value.decode("latin-1") for name, value in scope["headers"]}
        origin = given.get(b"origin")
        if origin is None:
            await self.app(scope, receive, send)
            return
        allowed = self.allows(origin)
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in given:
            await self._preflight(origin, allowed, given)(scope, receive, send)
            return

        async def marked(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                named = [(b"access-control-allow-origin", origin.encode("latin-1"))] if allowed else []
                exposed = [(b"access-control-expose-headers", EXPOSED.encode())] if allowed else []
                message["headers"] = [*message.get("headers", ()), *named, *exposed, (b"vary", b"Origin")]
            await send(message)

        await self.app(scope, receive, marked)

    def _preflight(self, origin: str, allowed: bool, asked: MutableMapping[bytes, str]) -> Response:
        if not allowed:
            why = f"Pages of {origin[:200]} may not use this server. Its owner can allow them with {OPTION}."
            return error_response(ApiError(403, why, code="origin_not_allowed", headers={"Vary": "Origin"}))
        headers = {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Methods": "GET, HEAD, POST, OPTIONS",
            "Access-Control-Max-Age": str(MAX_AGE),
            "Vary": "Origin, Access-Control-Request-Headers",
        }
        if wanted := asked.get(b"access-control-request-headers"):
            headers["Access-Control-Allow-Headers"] = wanted
        # Chrome asks before a page of a public address reaches a private one.
        if asked.get(b"access-control-request-private-network") == "true":
            headers["Access-Control-Allow-Private-Network"] = "true"
        return Response(status_code=204, headers=headers)
