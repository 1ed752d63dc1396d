"""/healthz, /readyz and /metrics, from a thread of their own: they answer also when everything else is stuck."""

import errno
import json
import socket
from collections.abc import Callable

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from plimsoll.operator.bounded_server import BoundedHandler, BoundedServer
from plimsoll.operator.metrics import Metrics

Check = Callable[[], list[str]]
"""What is wrong, in words; empty when all is well."""


class Health:
    """A small HTTP server.

    Args:
        alive: what only a restart would mend.
        ready: what still keeps the process from being useful.
        refresh: brings gauges up to date before they are shown.

    Raises OSError where the port cannot be listened on.
    """

    def __init__(self, port: int, metrics: Metrics, alive: Check, ready: Check, refresh: Callable[[], None]) -> None:
        health = self

        class Handler(BoundedHandler):
            def page(self) -> tuple[int, str, bytes]:
                return health._page(self.path.partition("?")[0])

        self._metrics, self._refresh = metrics, refresh
        self._checks = {"/healthz": alive, "/readyz": ready}
        self._server = BoundedServer(_bound(port), Handler)
        self.port = self._server.server_port

    def start(self) -> None:
        self._server.start("health")

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _page(self, path: str) -> tuple[int, str, bytes]:
        """Status, media type and body."""
        if path == "/metrics":
            self._refresh()
            return 200, CONTENT_TYPE_LATEST, generate_latest(self._metrics.registry)
        if path in self._checks:
            wrong = self._checks[path]()
            body = json.dumps({"ok": not wrong, "wrong": wrong}).encode() + b"\n"
            return 503 if wrong else 200, "application/json", body
        return 404, "text/plain", b"/healthz, /readyz and /metrics are here\n"


def _bound(port: int) -> socket.socket:
    """On every address of both families: a pod's only one may be of IPv6. Of IPv4 alone where there is no IPv6."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise
    return socket.create_server(("0.0.0.0", port))
