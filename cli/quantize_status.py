"""The status page of a quantisation: what the operator reads while the job runs."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from plimsoll.api.errors import SpecError

if TYPE_CHECKING:
    from plimsoll.quantjob.progress import Tracker


def serve_status(port: int, tracker: "Tracker") -> ThreadingHTTPServer:
    """Answer GET /status (`JobProgress` as JSON), /live and /ready on every address, from a thread, until `shutdown`.

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
            if path == "/live":
                self._answer(200, b'{"live":true}')
            elif path == "/status":
                self._answer(200, tracker.now.encode())
            elif path == "/ready":
                started = tracker.now.phase != "Preparing"
                self._answer(200 if started else 503, json.dumps({"ready": started}).encode())
            else:
                self._answer(404, b'{"error":"no such page"}')

        def _answer(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet: it is asked every few seconds."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def server_bind(self) -> None:
            # Without the library's look-up of this machine's own name, which a cluster's resolver may take long for.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(self.server_address)
            self.server_name, self.server_port = "plimsoll", self.socket.getsockname()[1]

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that hangs up is no news."""

    try:
        server = Server(("0.0.0.0", port), Page)
    except OSError as error:
        raise SpecError(f"cannot be listened on: {error.strerror}", field="--status-port", value=port) from None
    threading.Thread(target=server.serve_forever, args=(0.1,), name="status", daemon=True).start()
    return server
