"""The engine killed again and again under load, and hung: readiness follows, and answers come from the next engine."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from msgspec.structs import replace

from plimsoll.runtime.engine.transport.spawn import EngineProcess
from plimsoll.runtime.messages import EngineReady, FromEngine
from plimsoll.runtime.server import connection
from tests.support.endpoint import eventually, serving
from tests.support.processes import engines
from tests.support.server_process import ServerProcess, server_process
from tests.support.streams import Heard, listen

KINDS = 12


def request(kind: int) -> dict[str, Any]:
    """Every other one sampled with a seed, every third one whole, of two lengths."""
    sampled = {"temperature": 1.0, "seed": kind} if kind % 2 else {"temperature": 0}
    streamed = {"stream": True, "stream_options": {"include_usage": True}} if kind % 3 else {}
    return {"model": "tiny", "prompt": "ahoy " * 5 + f"{kind}", "max_tokens": 90 + 90 * (kind % 2),
            "ignore_eos": True} | sampled | streamed  # fmt: skip


def ready(server: ServerProcess) -> int:
    return server.http.get("/ready").status_code


async def load_until(server: ServerProcess, harm: Callable[[], None]) -> list[Heard]:
    """80 requests; the engine comes to harm once they run. Returns what each client heard."""
    clients = [asyncio.create_task(listen(server.port, request(number % KINDS))) for number in range(80)]

    def running() -> float:
        return server.metrics()["num_requests_running"]

    # On a busy machine requests may end nearly as fast as they begin.
    while await asyncio.to_thread(running) < 8:
        assert not all(client.done() for client in clients)
    await asyncio.to_thread(harm)
    return await asyncio.gather(*clients)


def check(heard: list[Heard], before: list[Heard]) -> int:
    """Only streams that had begun may fail; returns how many of the answers were whole."""
    for number, one in enumerate(heard):
        expected = before[number % KINDS]
        assert one.done, "every client hears an end"
        if one.error is None:
            assert one.text == expected.text
        else:
            assert one.error["code"] == "engine_dead"
            assert one.status == 200
            assert one.events
            assert expected.text.startswith(one.text)
    return sum(one.error is None for one in heard)


def test_killed_under_load_it_comes_back_and_what_had_sent_nothing_is_answered(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with server_process(tiny_checkpoint, tmp_path / "log") as server:
        before = [asyncio.run(listen(server.port, request(kind))) for kind in range(KINDS)]
        assert all(one.done and one.error is None for one in before)

        def kill() -> None:
            os.kill(server.engine.pid, signal.SIGKILL)
            eventually(lambda: ready(server) == 503)
            assert server.http.get("/health").status_code == 200

        def kill_twice() -> None:
            kill()
            # Before it has loaded, too.
            eventually(lambda: bool(engines(server.process.pid)))
            os.kill(server.engine.pid, signal.SIGKILL)
            # A request that comes now waits, and one that is wrong does not.
            status, refused = server.post("/v1/completions", request(0) | {"prompt": [5] * 10_000})
            assert (status, refused["error"]["code"]) == (400, "context_length_exceeded")
            assert ready(server) == 503

        for harm in (kill, kill_twice):
            heard = asyncio.run(load_until(server, harm))
            assert ready(server) == 200
            assert check(heard, before) > 80 / 3
            eventually(server.idle)
        metrics = server.metrics()
        assert metrics["engine_restarts_total"] == 3
        assert metrics["request_success_total"] == KINDS + 160
        assert "Traceback" not in server.words()


def test_hung_under_load_it_is_killed_and_what_had_sent_nothing_is_answered(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with server_process(tiny_checkpoint, tmp_path / "log", "--hang-timeout", "2") as server:
        before = [asyncio.run(listen(server.port, request(kind))) for kind in range(KINDS)]
        hung = server.engine

        def hang() -> None:
            hung.suspend()
            eventually(lambda: ready(server) == 503)

        heard = asyncio.run(load_until(server, hang))
        assert check(heard, before) > 80 / 3
        assert not hung.is_running()
        assert ready(server) == 200
        assert "it gave no sign of life for 2 s" in server.words()


def test_a_request_waits_for_an_engine_no_longer_than_it_may_and_takes_two_along_at_most(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tiny_checkpoint, restart_timeout=0.2) as endpoint, ThreadPoolExecutor() as pool:
        engine, hear = endpoint.service.engine, endpoint.service.engine._hear
        body = {"model": "tiny", "prompt": "ahoy", "max_tokens": 5}

        def kill() -> None:
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGKILL)

        def hear_and_hold(running: EngineProcess, message: FromEngine) -> None:
            hear(running, message)
            if isinstance(message, EngineReady):
                # Held still, an engine cannot answer before it is killed.
                psutil.Process(running.pid).suspend()

        monkeypatch.setattr(engine, "_hear", hear_and_hold)
        kill()
        eventually(lambda: not engine.ready)
        status, refused = endpoint.post("/v1/completions", body)
        assert (status, refused["error"]["code"]) == (503, "not_ready")
        endpoint.service.serving.config = replace(endpoint.service.config, restart_timeout=60.0)
        answer = pool.submit(endpoint.post, "/v1/completions", body)
        for restarts in (1, 2):
            eventually(lambda: engine.ready and engine.inflight == 1, 60)
            assert engine.restarts == restarts
            assert not answer.done()
            kill()
            eventually(lambda: not engine.ready)
        status, refused = answer.result()
        assert (status, refused["error"]["code"]) == (503, "engine_dead")


def test_a_head_that_never_ends_is_let_go(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.5)
    with serving(tiny_checkpoint) as endpoint, socket.create_connection(endpoint.service.socket_name) as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\nX: ")
        slow.settimeout(30)
        with contextlib.suppress(ConnectionResetError):
            assert slow.recv(1) == b""
