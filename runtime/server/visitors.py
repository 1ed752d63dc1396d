"""Whom a server without keys answers: no web page but those of this machine, and no name but its own.

A browser sends requests for any page to any address that its machine reaches, this machine's own included. What gives
a page away is the Origin it sends, and Sec-Fetch-Site where it sends none. A page whose name was made to point here
after it had been loaded (DNS rebinding) is of this server's own origin, and given away by its Host alone. With keys
none of it matters: a page has no key unless it was given one.
"""

from collections.abc import Sequence
from typing import NamedTuple

from plimsoll.api.hosts import host_name, host_of, is_host, is_loopback
from plimsoll.runtime.server.asgi import App, Receive, Scope, Send
from plimsoll.runtime.server.connection import TARGET
from plimsoll.runtime.server.errors import ApiError, bad_request

ANY = "*"
ORIGINS, HOSTS = "--allowed-origins", "--allowed-hosts"


class Visitors(NamedTuple):
    """The rule of one server."""

    keys: bool = False
    """Requests need a key."""
    origins: Sequence[str] = ()
    """Origins whose pages may use the server, as `https://app.example`; `*` is every one."""
    hosts: Sequence[str] | None = None
    """Names that Host may have besides those of loopback addresses; `*` is every one. None does not look at Host: a
    server that others reach over a network goes by names that it does not know."""
    links: bool = True
    """A link on another site may lead here: nothing is done by a GET alone."""

    def allows(self, origin: str) -> bool:
        """Whether pages of this origin may use the server: those listed, else all where there are keys, else only
        those of this machine."""
        if self.origins:
            return ANY in self.origins or origin in self.origins
        return self.keys or is_loopback(host_of(origin) or "")

    def refusal(self, scope: Scope) -> ApiError | None:
        """Why this request is not answered, None where it is."""
        given: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            if name in (b"host", b"origin", b"sec-fetch-site", b"sec-fetch-mode"):
                given.setdefault(name, []).append(value.decode("latin-1"))
        hosts = given.get(b"host", [])
        if len(hosts) > 1 or (not hosts and scope["http_version"] not in ("1.0", "0.9")):
            return bad_request(f"A request must have one Host header (found {len(hosts)}).", code="invalid_host")
        if self.keys:
            return None
        if scope.get(TARGET):
            hosts = [*hosts, scope[TARGET].decode("latin-1")]
        for host in hosts:
            if not self._answers_to(host):
                return _refused(
                    f"This server does not answer to the name {host[:100]!r}. Use localhost; its owner can allow "
                    f"other names with {HOSTS}, or require keys.", "host_not_allowed",
                )  # fmt: skip
        origins = given.get(b"origin", [])
        if not all(map(self.allows, origins)) or len(origins) > 1:
            return origin_refused(", ".join(origins))
        if not origins and self._is_of_another_page(given):
            return origin_refused("other sites")
        return None

    def _answers_to(self, host: str) -> bool:
        if self.hosts is None or ANY in self.hosts:
            return True
        return is_loopback(host) or (is_host(host) and host_name(host) in self.hosts)

    def _is_of_another_page(self, given: dict[bytes, list[str]]) -> bool:
        """Images, scripts and frames name no origin: browsers say of them that another site is behind them."""
        site, mode = given.get(b"sec-fetch-site", []), given.get(b"sec-fetch-mode", [])
        return "cross-site" in site and not (self.links and mode == ["navigate"]) and ANY not in self.origins


class Door:
    """ASGI middleware: answers visitors that the rule lets in.

    Raises ApiError 400 or 403 for all others.
    """

    def __init__(self, app: App, visitors: Visitors) -> None:
        self.app, self.visitors = app, visitors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self.visitors.refusal(scope)) is not None:
            raise refusal
        await self.app(scope, receive, send)


def origin_refused(origin: str) -> ApiError:
    """403: a web page of `origin` may not use this server."""
    why = f"Pages of {origin[:200]} may not use this server. Its owner can allow them with {ORIGINS}, or require keys."
    return _refused(why, "origin_not_allowed")


def _refused(message: str, code: str) -> ApiError:
    return ApiError(403, message, code=code, headers={"Vary": "Origin"})
