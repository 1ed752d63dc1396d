"""The engine killed again and again under load, and hung: said truthfully, and back with the same answers."""

import asyncio
import contextlib
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from plimsoll.runtime.server import connection
from tests.support.endpoint import eventually, serving
from tests.support.server_process import ServerProcess, server_process
from tests.support.streams import Heard, listen

KINDS = 12


def request(kind: int) -> dict[str, Any]:
    """Every other one sampled with a seed, every third one whole, of two lengths."""
    sampled = {"temperature": 1.0, "seed": kind} if kind % 2 else {"temperature": 0}
    streamed = {"stream": True, "stream_options": {"include_usage": True}} if kind % 3 else {}
    return {"model": "tiny", "prompt": "ahoy " * 5 + f"{kind}", "max_tokens": 60 + 120 * (kind % 2),
            "ignore_eos": True} | sampled | streamed  # fmt: skip


def ready(server: ServerProcess) -> int:
    return server.http.get("/ready").status_code


async def load_until(server: ServerProcess, kill: int) -> list[Heard]:
    """80 requests; the engine is killed once they run. Returns what each client heard."""
    clients = [asyncio.create_task(listen(server.port, request(number % KINDS))) for number in range(80)]

    def running() -> float:
        return server.metrics()["num_requests_running"]

    while await asyncio.to_thread(running) < 30:
        assert not all(client.done() for client in clients)
    os.kill(kill, signal.SIGKILL)
    return await asyncio.gather(*clients)


def test_killed_under_load_it_comes_back_with_the_same_answers(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with server_process(tiny_checkpoint, tmp_path / "log") as server:
        before = [asyncio.run(listen(server.port, request(kind))) for kind in range(KINDS)]
        assert all(one.done and one.error is None for one in before)
        for deaths in (1, 2):
            killed = server.engine.pid
            heard = asyncio.run(load_until(server, killed))
            assert ready(server) == 503
            assert server.http.get("/health").status_code == 200
            status, refused = server.post("/v1/completions", request(0))
            assert (status, refused["error"]["code"]) == (503, "not_ready")
            for number, one in enumerate(heard):
                expected = before[number % KINDS]
                assert one.done, "every client hears an end"
                if one.error is None:
                    assert one.text == expected.text
                    continue
                assert one.error["code"] in ("engine_dead", "not_ready")
                assert one.status == (200 if one.events else 503)
                assert expected.text.startswith(one.text)
            assert sum(one.error is not None for one in heard) > 20
            if deaths == 2:
                # Before it has loaded, too.
                eventually(lambda: bool(server.server.children()))
                os.kill(server.engine.pid, signal.SIGKILL)
            eventually(lambda: ready(server) == 200, 60)
            assert server.engine.pid != killed
            assert [asyncio.run(listen(server.port, request(kind))).text for kind in range(KINDS)] == [
                one.text for one in before
            ]
            eventually(server.idle)
        assert server.metrics()["engine_restarts_total"] == 3
        assert "Traceback" not in server.words()


def test_a_hung_engine_is_no_healthy_one_and_a_head_that_never_ends_is_let_go(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.5)
    with serving(tiny_checkpoint) as endpoint, socket.create_connection(endpoint.service.socket_name) as slow:
        monkeypatch.setattr(endpoint.service.engine, "_stall_seconds", 1.0)
        body = {"model": "tiny", "prompt": "ahoy", "max_tokens": 5, "seed": 1}
        before = endpoint.post("/v1/completions", body)[1]["choices"]
        slow.sendall(b"GET /health HTTP/1.1\r\nX: ")
        slow.settimeout(30)
        with contextlib.suppress(ConnectionResetError):
            assert slow.recv(1) == b""
        pid = endpoint.service.engine.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            eventually(lambda: endpoint.http.get("/health").status_code == 503)
            assert endpoint.http.get("/health").json()["error"]["message"] == "The engine's loop does not turn."
        finally:
            os.kill(pid, signal.SIGCONT)
        eventually(lambda: endpoint.http.get("/health").status_code == 200)
        assert endpoint.post("/v1/completions", body)[1]["choices"] == before
        assert endpoint.metric("engine_restarts_total") == 0
