"""/healthz, /readyz and /metrics, from a thread of their own: they answer also when everything else is stuck."""

import errno
import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from plimsoll.operator.metrics import Metrics

Check = Callable[[], list[str]]
"""What is wrong, in words; empty when all is well."""


class Health:
    """A small HTTP server.

    Args:
        alive: what only a restart would mend.
        ready: what still keeps the process from being useful.
        refresh: brings gauges up to date before they are shown.
    """

    def __init__(self, port: int, metrics: Metrics, alive: Check, ready: Check, refresh: Callable[[], None]) -> None:
        health = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                health._answer(self)

            def do_HEAD(self) -> None:
                health._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._metrics, self._refresh = metrics, refresh
        self._checks = {"/healthz": alive, "/readyz": ready}
        self._server = _Server(("::", port), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        if path == "/metrics":
            self._refresh()
            self._send(request, 200, CONTENT_TYPE_LATEST, generate_latest(self._metrics.registry))
        elif path in self._checks:
            wrong = self._checks[path]()
            body = json.dumps({"ok": not wrong, "wrong": wrong}).encode() + b"\n"
            self._send(request, 503 if wrong else 200, "application/json", body)
        else:
            self._send(request, 404, "text/plain", b"/healthz, /readyz and /metrics are here\n")

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, status: int, content: str, body: bytes) -> None:
        request.send_response(status)
        request.send_header("Content-Type", content)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 32

    def server_bind(self) -> None:
        # Without the library's look-up of this machine's own name, which a cluster's resolver may take long for.
        self.socket.close()
        self.socket = _bound(self.server_address[1])
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "plimsoll-operator", self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """A prober that hangs up is no news."""


def _bound(port: int) -> socket.socket:
    """On every address of both families: a pod's only one may be of IPv6. Of IPv4 alone where there is no IPv6."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise
    return socket.create_server(("0.0.0.0", port))
