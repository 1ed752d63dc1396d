"""Bytes that are hardly HTTP, heads and bodies without end: refused or hung up on, and nobody else notices."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from plimsoll.runtime.server.connection import HEAD_BYTES, SPARE_DESCRIPTORS
from tests.support.endpoint import eventually
from tests.support.server_process import ServerProcess, answers, server_process

BODY = b'{"model":"tiny","prompt":"hi","max_tokens":2}'
HOST = b"Host: localhost\r\nConnection: close\r\n"
TYPE = b"Content-Type: application/json\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\n" + HOST + TYPE
GET = b"GET /health HTTP/1.1\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(tiny_checkpoint, tmp_path_factory.mktemp("connections") / "log") as running:
        engine = running.engine.pid
        yield running
        eventually(running.idle)
        assert running.engine.pid == engine
        assert works(running)
        assert "Traceback" not in running.words()
        assert '"level": "error"' not in running.words()


def works(server: ServerProcess) -> bool:
    status, answer = server.post(
        "/v1/completions", {"model": "tiny", "prompt": "hi", "max_tokens": 3, "ignore_eos": True}
    )
    return status == 200 and answer["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    "sent",
    [
        POST + b"Content-Length: -1\r\n\r\n" + BODY,
        POST + b"Content-Length: 99999999999999999999999999\r\n\r\n" + BODY,
        POST + b"Content-Length: many\r\n\r\n" + BODY,
        POST + b"Content-Length: 4, 4\r\n\r\n" + BODY,
        POST + LENGTH + b"Content-Length: 3\r\n\r\n" + BODY,
        POST + LENGTH + CHUNKED + b"\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
        POST + b"Transfer-Encoding: gzip\r\n\r\n" + BODY,
        POST + CHUNKED + b"\r\n-1\r\n" + BODY,
        POST + CHUNKED + b"\r\nffffffffffffffffff\r\n" + BODY,
        POST + CHUNKED + b"\r\nxyz\r\n" + BODY,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        bytes.fromhex("16030100a5010000a10303") + bytes(160),
        b"CONNECT example.org:443 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /health HTTP/3.0\r\n" + HOST + b"\r\n",
        b"GET /\0 HTTP/1.1\r\n" + HOST + b"\r\n",
        "GET /ключ HTTP/1.1\r\n".encode() + HOST + b"\r\n",
        b"GET /health HTTP/1.1\nHost: x\n\n",
        b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n",
        GET + b"X: a\0b\r\n" + HOST + b"\r\n",
        GET + b"X: a\r\n b\r\n" + HOST + b"\r\n",
        GET + b"X\r\n" + HOST + b"\r\n",
        GET + b"X : a\r\n" + HOST + b"\r\n",
        GET + b"Host: localhost\r\n" + HOST + b"\r\n",
        GET + b"Connection: close\r\n\r\n",
        bytes(range(256)) * 10,
    ],
)
def test_what_is_not_http_is_a_400_and_the_end_of_the_connection(server: ServerProcess, sent: bytes) -> None:
    [(status, _)] = answers(server.say(sent))
    assert status == 400


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (POST + b"Expect: miracles\r\n" + LENGTH + b"\r\n" + BODY, 200),
        (POST + CHUNKED + b"\r\n%x;a=%s\r\n%s\r\n0\r\n\r\n" % (len(BODY), b"x" * 5000, BODY), 200),
        (POST + CHUNKED + b"\r\n" + b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\nTrailer: x\r\n\r\n", 200),
        (POST + LENGTH + b"\r\n" + BODY + b"and more", 200),
        (b"GET http://localhost:80/health HTTP/1.1\r\n" + HOST + b"\r\n", 200),
        (b"GET http://example.org/health HTTP/1.1\r\n" + HOST + b"\r\n", 403),
        (POST + b"Content-Length: " + b"0" * 5000 + b"%d\r\n\r\n" % len(BODY) + BODY, 200),
        (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", 404),
        (b"GET /%zz%f HTTP/1.1\r\n" + HOST + b"\r\n", 404),
        (b"GET /health HTTP/1.0\r\n\r\n", 200),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n", 200),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"
         b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", 200),
    ],
)  # fmt: skip
def test_what_is_odd_and_still_http_is_answered(server: ServerProcess, sent: bytes, status: int) -> None:
    assert [found for found, _ in answers(server.say(sent))] == [status]


def test_requests_in_one_packet_are_answered_in_order(server: ServerProcess) -> None:
    bodies = [b'{"model":"tiny","prompt":"hi","max_tokens":%d,"ignore_eos":true}' % (1 + i % 5) for i in range(30)]
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + TYPE + b"Content-Length: %d\r\n\r\n%s"
    found = answers(server.say(b"".join(head % (len(body), body) for body in bodies) + GET + HOST + b"\r\n"))
    assert [status for status, _ in found] == [200] * 31
    assert [b'"completion_tokens":%d,' % (1 + i % 5) in body for i, (_, body) in enumerate(found[:30])] == [True] * 30


@pytest.mark.parametrize(
    "begin",
    [GET + b"X: ", b"GET /", POST + CHUNKED + b"\r\n0\r\nX: ", POST + CHUNKED + b"\r\n1;a="],
    ids=["header", "url", "trailer", "extension"],
)
def test_a_head_without_end_is_hung_up_on(server: ServerProcess, begin: bytes) -> None:
    before = server.server.memory_info().rss
    sent = 0
    with (
        contextlib.suppress(ConnectionError),
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as endless,
    ):
        endless.sendall(begin)
        while sent < 1000:
            endless.sendall(b"x" * HEAD_BYTES)
            sent += 1
    assert sent < 1000
    assert server.server.memory_info().rss - before < 32 * HEAD_BYTES * 16
    assert works(server)


def test_many_headers_are_hung_up_on(server: ServerProcess) -> None:
    assert b" 200 " not in server.say(GET, *[b"X: a\r\n" * 10_000] * 20, HOST + b"\r\n")


def test_connections_that_dawdle_hold_nobody_up_and_are_let_go(server: ServerProcess) -> None:
    def descriptors() -> int:
        return psutil.Process(server.process.pid).num_fds()

    before = descriptors()
    with contextlib.ExitStack() as stack:
        for begin in (
            b"",
            b"G",
            GET + b"X-Slow: ",
            POST + LENGTH + b"\r\n",
            POST + CHUNKED + b"\r\n",
            POST + LENGTH + b"\r\n{",
        ):
            for _ in range(50):
                slow = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
                slow.sendall(begin)
        eventually(lambda: descriptors() >= before + 300)
        assert works(server)
        assert server.http.get("/health").status_code == 200
    eventually(lambda: descriptors() <= before + 2)


def test_a_server_that_runs_out_of_descriptors_goes_on(server: ServerProcess) -> None:
    before = server.server.num_fds()
    soft, hard = server.server.rlimit(psutil.RLIMIT_NOFILE)
    server.server.rlimit(psutil.RLIMIT_NOFILE, (before + SPARE_DESCRIPTORS + 10, hard))
    try:
        with contextlib.ExitStack() as stack:
            for number in range(200):
                with contextlib.suppress(ConnectionError):
                    idle = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
                    idle.sendall((b"", GET, POST + LENGTH + b"\r\n{")[number % 3])
            assert [status for status, _ in answers(server.say(GET + HOST + b"\r\n"))] == [200]
            assert server.server.num_fds() <= before + SPARE_DESCRIPTORS + 10
    finally:
        server.server.rlimit(psutil.RLIMIT_NOFILE, (soft, hard))
    assert works(server)
