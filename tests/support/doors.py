"""The HTTP server with all its layers about routes of a test's own: no model, so it starts at once."""

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

from plimsoll.runtime.config import EngineConfig, ServerConfig
from plimsoll.runtime.server.app import around
from plimsoll.runtime.server.asgi import App, Receive, Scope, Send
from plimsoll.runtime.server.body_size import body_size
from plimsoll.runtime.server.drain import Gate
from plimsoll.runtime.server.listener import http_server, is_local, listen
from plimsoll.runtime.server.loop import run


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body and says how long it was; of `/N` the answer is N bytes."""
    size, more = 0, scope["method"] == "POST"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    wanted = re.fullmatch(r"/(\d{1,9})", scope["path"])
    body = bytes(int(wanted[1])) if wanted else b"%d bytes" % size
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Doors:
    """A running server."""

    def __init__(self, port: int, connections: set[Any]) -> None:
        self.port, self.connections = port, connections

    def connect(self, *parts: bytes) -> socket.socket:
        """A connection on which `parts` were sent."""
        made = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        for part in parts:
            made.sendall(part)
        return made

    def ask(self, *parts: bytes) -> bytes:
        """What is answered on a connection of its own until the server closes it."""
        with self.connect() as made:
            heard = b""
            # A server that has said no may close before it has read everything.
            with contextlib.suppress(ConnectionError):
                for part in parts:
                    made.sendall(part)
            with contextlib.suppress(ConnectionError):
                while data := made.recv(1 << 16):
                    heard += data
            return heard

    def status(self, *parts: bytes) -> int:
        """The status of the one answer, 0 where the server hangs up without one."""
        found = [int(status) for status in re.findall(rb"^HTTP/1.1 (\d{3}) ", self.ask(*parts), re.MULTILINE)]
        assert len(found) <= 1, found
        return found[0] if found else 0


def get(path: str = "/health", *headers: str, host: str | None = "localhost") -> bytes:
    lines = [*headers, "Connection: close", *([] if host is None else [f"Host: {host}"])]
    return "\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode("latin-1")


def post(body: bytes, *headers: str, path: str = "/v1/completions") -> bytes:
    lines = [*headers, "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([f"POST {path} HTTP/1.1", *lines, "", ""]).encode("latin-1") + body


@contextlib.contextmanager
def doors(app: App = echo, host: str = "127.0.0.1", connections: int = 1024, **config: Any) -> Iterator[Doors]:
    """Serves `app` until the block ends; `config` are fields of ServerConfig."""
    with listen(host, 0) as listener:
        settings = ServerConfig(served_name="tiny", host=host, **config)
        size = body_size(settings, EngineConfig(model="tiny"), None)
        http = http_server(around(app, settings, Gate(), lambda: size, local=is_local(listener)), connections)
        thread = threading.Thread(target=lambda: run(http.serve([listener])))
        thread.start()
        try:
            yield Doors(listener.getsockname()[1], http.server_state.connections)
        finally:
            for connection in list(http.server_state.connections):
                connection.loop.call_soon_threadsafe(connection.transport.abort)
            http.should_exit = True
            thread.join()
