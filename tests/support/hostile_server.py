"""A server on loopback that answers as a test says: any status, header and body, of any length, true or not."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: Bytes after which even an answer without an end ends: a client that takes so much has no bound.
MOST = 64 << 20


@dataclass(frozen=True)
class Answer:
    """`body` without a Content-Length in `headers` ends with the connection; an iterator may have no end."""

    body: bytes | Iterable[bytes] = b""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class Hostile:
    """A running server. `seen`: path and headers (in small letters) of each request; `sent`: bytes of bodies."""

    url: str = ""
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    sent: int = 0


def endless(piece: bytes = b" " * 65536) -> Iterator[bytes]:
    while True:
        yield piece


@contextmanager
def hostile_server(answer: Callable[[str], Answer]) -> Iterator[Hostile]:
    """Serve on a free port of 127.0.0.1. Args: answer: of a path with its query."""
    found = Hostile()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

        def do_GET(self) -> None:
            found.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            given = answer(self.path)
            self.send_response(given.status)
            for name, value in given.headers:
                self.send_header(name, value)
            if isinstance(given.body, bytes) and all(name.lower() != "content-length" for name, _ in given.headers):
                self.send_header("Content-Length", str(len(given.body)))
            self.send_header("Connection", "close")
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.end_headers()
                for piece in (
                    () if self.command == "HEAD" else [given.body] if isinstance(given.body, bytes) else given.body
                ):
                    self.wfile.write(piece)
                    found.sent += len(piece)
                    if found.sent > MOST:
                        break

        do_HEAD = do_GET  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
