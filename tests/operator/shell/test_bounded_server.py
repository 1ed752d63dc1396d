"""Ports of the operator and of pods that work: what any client may take of them, on the two servers themselves."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from plimsoll.cli.status_page import serve_status
from plimsoll.operator import bounded_server
from plimsoll.operator.health import Health
from plimsoll.operator.metrics import Metrics


@pytest.fixture(params=["health", "status"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """Of a server with a page /readyz: the operator's, and that of a fetch or a quantization."""
    if request.param == "health":
        health = Health(0, Metrics(), list, list, lambda: None)
        health.start()
        yield health.port
        health.stop()
    else:
        page = serve_status(0, {"/readyz": lambda: (200, b"{}")})
        yield page.server_port
        page.shutdown()
        page.server_close()


def connect(port: int) -> socket.socket:
    # A client that only says nothing more is waited for for longer than this.
    return socket.create_connection(("127.0.0.1", port), timeout=bounded_server.CONNECTION_SECONDS / 2)


def status_of(port: int) -> int:
    with connect(port) as client:
        client.sendall(b"GET /readyz HTTP/1.1\r\n\r\n")
        return int(client.recv(4096).split()[1])


@pytest.mark.parametrize(
    "head", [b"GET /" + b"x" * 60_000, b"GET / HTTP/1.1\r\n" + (b"X: " + b"y" * 6000 + b"\r\n") * 9]
)
def test_a_request_that_is_too_long_is_hung_up_on(port: int, head: bytes) -> None:
    with connect(port) as client, contextlib.suppress(ConnectionError):
        client.sendall(head)
        assert client.recv(4096) == b""
    assert status_of(port) == 200


def test_clients_that_stall_keep_no_other_from_an_answer(port: int) -> None:
    before = threading.active_count()
    with contextlib.ExitStack() as stalled:
        clients = [stalled.enter_context(connect(port)) for _ in range(100)]
        for client in clients:
            with contextlib.suppress(ConnectionError):
                client.sendall(b"GET /readyz HT")
        assert status_of(port) == 200
        # The first that came were hung up on, and the last still may go on.
        assert clients[0].recv(1) == b""
        # A thread whose client was hung up on ends when it runs next.
        limit = time.monotonic() + 10
        while threading.active_count() > before + bounded_server.MOST_CONNECTIONS and time.monotonic() < limit:
            time.sleep(0.02)
        assert threading.active_count() <= before + bounded_server.MOST_CONNECTIONS
        clients[-1].sendall(b"TP/1.1\r\n\r\n")
        assert clients[-1].recv(12) == b"HTTP/1.0 200"


def test_a_client_that_sends_a_byte_now_and_then_is_hung_up_on(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    with connect(port) as client:
        client.sendall(b"GET ")
        monkeypatch.setattr(bounded_server, "CONNECTION_SECONDS", 0.0)
        assert client.recv(1) == b""
