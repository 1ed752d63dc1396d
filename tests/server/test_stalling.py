"""Clients that stall: bodies that do not arrive, answers that are not read, connections that ask for nothing."""

import contextlib
import socket

import pytest

from plimsoll.runtime.server import connection, limits
from tests.support.doors import Doors, doors, get, post
from tests.support.endpoint import eventually

MIB = 1 << 20


def stalled(server: Doors, size: int, sent: int) -> socket.socket:
    """A request whose body of `size` bytes ends early."""
    return server.connect(post(b" " * sent, f"Content-Length: {size}"))


def answer(waiting: socket.socket) -> bytes:
    with contextlib.suppress(ConnectionError):
        return waiting.recv(4096)
    return b""


def test_bodies_that_stall_give_way_to_one_that_comes() -> None:
    with doors(max_body_bytes=MIB, max_bodies_bytes=4 * MIB) as server, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(stalled(server, MIB, MIB - 1)) for _ in range(20)]
        refused: list[socket.socket] = []
        for _ in range(3):
            whole = post(b" " * MIB, f"Content-Length: {MIB}", "Connection: close")
            assert server.ask(whole).endswith(b"%d bytes" % MIB)
        for one in slow:
            one.setblocking(False)

        def let_go() -> int:
            for one in slow:
                with contextlib.suppress(BlockingIOError):
                    if one not in refused and b" 503 " in answer(one):
                        refused.append(one)
            return len(refused)

        eventually(lambda: let_go() >= 16)
        assert len(refused) < 20


def test_a_small_body_comes_through_while_others_fill_what_bodies_may_hold() -> None:
    with doors(max_body_bytes=MIB, max_bodies_bytes=2 * MIB) as server, contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(stalled(server, MIB, MIB - 10))
        for _ in range(20):
            assert server.ask(post(b" " * 100, "Content-Length: 100", "Connection: close")).endswith(b"100 bytes")


@pytest.mark.parametrize("rest", [b"", b" "])
def test_a_body_that_is_late_ends_its_connection(rest: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECONDS", 0.05)
    with doors() as server, stalled(server, 100, 10) as late:
        heard = b""
        with contextlib.suppress(ConnectionError):
            while data := late.recv(4096):
                heard += data
                late.sendall(rest)
        assert b" 408 " in heard
        assert b"connection: close" in heard.lower()


def test_a_client_that_was_answered_before_its_body_came_may_not_go_on_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def hasty(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    monkeypatch.setattr(connection, "REST_SECONDS", 0.05)
    with doors(hasty) as server, stalled(server, 1000, 10) as dawdler:
        assert b" 200 " in answer(dawdler)
        with contextlib.suppress(ConnectionError):
            while True:
                dawdler.sendall(b" ")
                if not dawdler.recv(4096):
                    break


def test_a_rest_of_a_body_that_does_come_keeps_the_connection() -> None:
    async def hasty(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    with doors(hasty) as server, stalled(server, 1000, 10) as client:
        for _ in range(2):
            assert b" 200 " in answer(client)
            client.sendall(b" " * 990 + post(b" " * 10, "Content-Length: 1000"))
        assert b" 200 " in answer(client)


@pytest.mark.parametrize("path", ["/8000000", "/300000"])
def test_an_answer_that_is_not_read_is_dropped(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "WRITE_SECONDS", 0.2)
    with doors() as server, contextlib.ExitStack() as stack:
        for _ in range(6):
            deaf = socket.socket()
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", server.port))
            stack.enter_context(deaf).sendall(get(path).replace(b"Connection: close\r\n", b""))
        eventually(lambda: len(server.connections) == 6)
        eventually(lambda: not server.connections)


def test_a_stream_whose_error_is_not_read_either_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    from plimsoll.runtime.server.streaming import EventStream

    ended: list[bool] = []

    async def events():
        try:
            while True:
                yield b"data: " + b"x" * 10_000 + b"\n\n"
        finally:
            ended.append(True)

    async def stream(scope, receive, send) -> None:
        await receive()
        await EventStream(events(), 0.3)(scope, receive, send)

    monkeypatch.setattr(connection, "WRITE_SECONDS", 0.6)
    with doors(stream) as server, server.connect(post(b"", "Content-Length: 0")):
        eventually(lambda: bool(server.connections))
        eventually(lambda: not server.connections)
        eventually(lambda: bool(ended))


def test_a_client_that_reads_slowly_gets_all_of_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "WRITE_SECONDS", 0.2)
    monkeypatch.setattr(connection, "WRITE_BYTES", 1)
    with doors() as server, server.connect(get("/20000000")) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        size = 0
        while data := slow.recv(1 << 14):
            size += len(data)
        assert size > 20_000_000


def test_connections_that_ask_for_nothing_make_room_for_one_that_does() -> None:
    with doors(connections=20) as server, contextlib.ExitStack() as stack:
        for begin, answered in ((b"", False), (b"GET /", False), (get().replace(b"close", b"keep-alive"), True)):
            for _ in range(30):
                made = stack.enter_context(server.connect(begin))
                # Until its answer is there it is not the client that keeps the server waiting.
                assert not answered or answer(made)
        assert server.status(get()) == 200
        assert len(server.connections) <= 20
