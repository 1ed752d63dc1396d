"""A real engine process that stops, hangs or cannot be killed."""

import asyncio
import signal
from collections.abc import Callable, Iterator

import msgspec
import psutil
import pytest

from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.transport import spawn
from plimsoll.runtime.engine.transport.client import EngineClient, EngineDead
from tests.support.clients import SECONDS, answer, drain, request, until


@pytest.fixture
def hang_seconds(shared: EngineClient) -> Iterator[Callable[[EngineClient, float], None]]:
    """Changes how long the engine of a client may be silent, where this process was not told so from its start."""

    def change(client: EngineClient, seconds: float) -> None:
        client.config = msgspec.structs.replace(client.config, hang_timeout=seconds)
        if client._running is not None:
            client._running.watch._hang = seconds

    yield change
    change(shared, 20.0)


def test_an_engine_that_stops_for_a_while_is_not_ready_meanwhile(
    shared: EngineClient, loop: asyncio.Runner, hang_seconds: Callable[[EngineClient, float], None]
) -> None:
    async def test() -> None:
        pid, restarts = shared.pid, shared.restarts
        hang_seconds(shared, 6.0)
        process = psutil.Process(pid)
        process.suspend()
        await until(lambda: not shared.ready)
        assert not shared.alive
        with pytest.raises(EngineDead, match="not ready"):
            await answer(shared, request("meanwhile"))
        waiting = asyncio.create_task(shared.available(SECONDS))
        process.resume()
        await waiting
        assert await answer(shared, request("after"))
        assert (shared.pid, shared.restarts) == (pid, restarts)

    loop.run(test())


def test_an_engine_that_hangs_under_load_is_killed_and_started_again(
    shared: EngineClient, loop: asyncio.Runner, hang_seconds: Callable[[EngineClient, float], None]
) -> None:
    async def test() -> None:
        before, restarts = await answer(shared, request("before")), shared.restarts
        hung = psutil.Process(shared.pid)
        stream = shared.generate(request("long", 240))
        await anext(stream)
        hung.suspend()
        hang_seconds(shared, 0.1)
        with pytest.raises(EngineDead, match="no sign of life"):
            await drain(stream)
        hang_seconds(shared, SECONDS)
        await shared.available(SECONDS)
        assert not hung.is_running()
        assert shared.restarts == restarts + 1
        assert await answer(shared, request("after")) == before

    loop.run(test())


def test_a_process_that_sigkill_does_not_end_is_given_up(config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        client = EngineClient(config)
        await client.start()
        await until(lambda: client.pid is not None)
        assert client._running is not None
        process = client._running._process
        assert process is not None
        monkeypatch.setattr(spawn, "KILL_SECONDS", 0.1)
        # Stands for one that the kernel does not let go of, as on a device that does not answer.
        monkeypatch.setattr(process, "kill", lambda: None)
        client._running._binding.remove()
        client._running.watch.wait(1e6)
        with pytest.raises(EngineDead, match=r"process \d+ did not end within 0.1 s of SIGKILL"):
            await client.wait_ready(SECONDS)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await client.close()

    asyncio.run(test())
