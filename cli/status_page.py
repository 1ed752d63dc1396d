"""The status page of a command that works in a pod: what probes and the operator read while it goes on.

Anybody who reaches the port may connect, so each client has little: one short request, a few seconds, one thread of a
fixed number. Of too many clients the one leaves that has waited for longest, and a probe is always answered.
"""

import contextlib
import io
import socket
import threading
import time
from collections.abc import Callable, Mapping
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from plimsoll.api.errors import SpecError
from plimsoll.api.hosts import host_of, is_address, is_loopback
from plimsoll.runtime.server.sockets import ANY, bound

#: (HTTP status, JSON) of one page at this moment.
Answer = tuple[int, bytes]
LIVE: Answer = 200, b'{"live":true}'
UNKNOWN: Answer = 404, b'{"error":"no such page"}'
FOREIGN: Answer = 403, b'{"error":"pages of other sites may not read this, and names but localhost are not answered"}'

#: Connections at once, each with a thread. A kubelet and an operator have one each.
MOST_CONNECTIONS = 32
#: Seconds from a connection to the end of its answer.
CONNECTION_SECONDS = 10.0
#: Bytes of a request, request line and headers.
HEAD_BYTES = 16 * 1024


def serve_status(port: int, pages: Mapping[str, Callable[[], Answer]]) -> ThreadingHTTPServer:
    """Answer GET of each of `pages` by path, and /live, on every address, from a thread, until `shutdown`.

    Raises:
        SpecError: the port is taken.
    """
    try:
        server = _Server(port, pages)
    except OSError as error:
        raise SpecError(f"cannot be listened on: {error.strerror}", field="--status-port", value=port) from None
    threading.Thread(target=server.serve_forever, args=(0.1,), name="status", daemon=True).start()
    return server


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


class _Page(BaseHTTPRequestHandler):
    server_version = "plimsoll"
    sys_version = ""
    timeout = CONNECTION_SECONDS
    server: "_Server"

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_Head(self.connection.makefile("rb", buffering=0)))

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if _is_foreign(self.headers):
            status, data = FOREIGN
        else:
            status, data = LIVE if path == "/live" else self.server.pages.get(path, lambda: UNKNOWN)()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: it is asked every few seconds."""


def _is_foreign(headers: Message) -> bool:
    """Whether a page of another site may be behind a request.

    It gives its origin, or its browser says that it is of another site, or it goes by a name that was made to point
    here. Kubelets, operators and scrapers go by the pod's address.
    """
    origins, sites = headers.get_all("Origin", []), headers.get_all("Sec-Fetch-Site", [])
    if not all(is_loopback(host_of(origin) or "") for origin in origins) or "cross-site" in sites:
        return True
    return not all(is_loopback(host) or is_address(host) for host in headers.get_all("Host", []))


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, pages: Mapping[str, Callable[[], Answer]]) -> None:
        self.pages = pages
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}
        """Each connection and when it began, the oldest first."""
        super().__init__((ANY, port), _Page)

    def server_bind(self) -> None:
        # Without the library's look-up of this machine's own name, which a cluster's resolver may take long for.
        self.socket.close()
        self.socket = bound(ANY, self.server_address[1])
        self.server_name, self.server_port = "plimsoll", self.socket.getsockname()[1]

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
