"""The status page of a command that works in a pod: what probes and the operator read while it goes on."""

import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from plimsoll.api.errors import SpecError
from plimsoll.runtime.server.sockets import ANY, bound

#: (HTTP status, JSON) of one page at this moment.
Answer = tuple[int, bytes]
LIVE: Answer = 200, b'{"live":true}'
UNKNOWN: Answer = 404, b'{"error":"no such page"}'


def serve_status(port: int, pages: Mapping[str, Callable[[], Answer]]) -> ThreadingHTTPServer:
    """Answer GET of each of `pages` by path, and /live, on every address, from a thread, until `shutdown`.

    Raises:
        SpecError: the port is taken.
    """

    class Page(BaseHTTPRequestHandler):
        server_version = "plimsoll"
        sys_version = ""
        # A client that says nothing must not hold a thread for good.
        timeout = 10

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            status, data = LIVE if path == "/live" else pages.get(path, lambda: UNKNOWN)()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:
            """Quiet: it is asked every few seconds."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def server_bind(self) -> None:
            # Without the library's look-up of this machine's own name, which a cluster's resolver may take long for.
            self.socket.close()
            self.socket = bound(ANY, port)
            self.server_name, self.server_port = "plimsoll", self.socket.getsockname()[1]

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that hangs up is no news."""

    try:
        server = Server((ANY, port), Page)
    except OSError as error:
        raise SpecError(f"cannot be listened on: {error.strerror}", field="--status-port", value=port) from None
    threading.Thread(target=server.serve_forever, args=(0.1,), name="status", daemon=True).start()
    return server
