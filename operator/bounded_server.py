"""A small HTTP server whose clients have little each: one short request, a few seconds, one thread of a fixed number.

Anybody who reaches a port of a pod may connect to it. Of too many clients the one that came first is hung up on, so a
probe is always answered. The standard library alone: pages of a pod are there before anything large is imported.
"""

import contextlib
import io
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: Connections at once, each with a thread. A kubelet, an operator and a scraper have one each.
MOST_CONNECTIONS = 32
#: Seconds from a connection to the end of its answer.
CONNECTION_SECONDS = 10.0
#: Bytes of a request, request line and headers.
HEAD_BYTES = 16 * 1024


class _Head(io.RawIOBase):
    """What a client sends, up to `HEAD_BYTES`. More is an error, as an early end would hide later headers."""

    def __init__(self, raw: Any) -> None:
        self._raw, self._left = raw, HEAD_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        count: int | None = self._raw.readinto(buffer)
        self._left -= count or 0
        if self._left < 0:
            raise ConnectionError(f"a request of more than {HEAD_BYTES} bytes")
        return count


class BoundedHandler(BaseHTTPRequestHandler):
    """One request, a GET or a HEAD, which is answered by `page`."""

    server_version = "plimsoll"
    sys_version = ""
    timeout = CONNECTION_SECONDS

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_Head(self.connection.makefile("rb", buffering=0)))

    def page(self) -> tuple[int, str, bytes]:
        """Status, media type and body of the answer."""
        raise NotImplementedError

    def do_GET(self) -> None:
        status, content, body = self.page()
        self.send_response(status)
        self.send_header("Content-Type", content)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: probes ask every few seconds."""


class BoundedServer(ThreadingHTTPServer):
    """Serves on `listener`, which it closes in the end."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, handler: type[BoundedHandler]) -> None:
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}
        """Each connection and when it began, the oldest first."""
        # Without the library's look-up of this machine's own name, which a cluster's resolver may take long for.
        super().__init__(listener.getsockname(), handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.server_name = listener, "plimsoll"
        self.server_port: int = listener.getsockname()[1]

    def start(self, name: str) -> None:
        """Serves from a thread of this name, until `shutdown`."""
        threading.Thread(target=self.serve_forever, args=(0.1,), name=name, daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            oldest = next(iter(self._open)) if len(self._open) >= MOST_CONNECTIONS else None
            if oldest is not None:
                del self._open[oldest]
            self._open[request] = time.monotonic()
        if oldest is not None:
            _hang_up(oldest)
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Ends what has taken too long: a client may send a byte now and then."""
        with self._lock:
            late = [one for one, began in self._open.items() if time.monotonic() - began > CONNECTION_SECONDS]
        for one in late:
            _hang_up(one)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news."""


def _hang_up(connection: socket.socket) -> None:
    """Its thread then reads the end, and closes it."""
    with contextlib.suppress(OSError):  # It is closed already.
        connection.shutdown(socket.SHUT_RDWR)
