"""The client and a real engine process: answers, hang-ups, deaths and returns."""

import asyncio
import contextlib
import logging
import os
import signal
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
import zmq

from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.transport import client as client_module
from plimsoll.runtime.engine.transport.client import EngineBusy, EngineClient, EngineDead
from plimsoll.runtime.engine.transport.wire import Binding, encode_message
from plimsoll.runtime.messages import (
    EngineFailed,
    EngineRequest,
    EngineStats,
    RequestTimes,
    TokenOutput,
)
from tests.support.checkpoints import VOCAB_SIZE
from tests.support.clients import SECONDS, answer, drain, request, until


@pytest.fixture(scope="module")
def narrow(config: EngineConfig, loop: asyncio.Runner) -> Iterator[EngineClient]:
    """An engine with one slot and two places in its queue, where no folder for sockets could be made."""

    def refuse(**_: object) -> str:
        raise OSError("read-only file system")

    client = EngineClient(msgspec.structs.replace(config, max_running=1, max_queued_requests=2))

    async def begin() -> None:
        await client.start()
        await client.wait_ready(SECONDS)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "mkdtemp", refuse)
        loop.run(begin())
    yield client
    loop.run(client.close())


async def idle(client: EngineClient) -> None:
    """Until the engine has nothing left, and then its books must balance."""
    await until(lambda: not client.stats.running and not client.stats.waiting)
    assert client.inflight == 0
    assert client.stats.blocks_free + client.stats.blocks_cached == client.stats.blocks_total


def test_an_answer_does_not_depend_on_company(shared: EngineClient, loop: asyncio.Runner) -> None:
    async def test() -> None:
        asked = [
            request(f"r{i}", 12, prompt=tuple(range(1, 4 + i)), temperature=0.9, seed=i, top_p=0.9) for i in range(12)
        ]
        alone = [await answer(shared, one) for one in asked]
        together = await asyncio.gather(*(answer(shared, one) for one in asked))
        assert together == alone
        assert all(len(tokens) == 12 for tokens in alone)
        assert len({tuple(tokens) for tokens in alone}) > 6
        await idle(shared)

    loop.run(test())


def test_two_hundred_requests_of_which_a_third_hang_up(shared: EngineClient, loop: asyncio.Runner) -> None:
    async def hang_up(asked: EngineRequest, way: int) -> None:
        async with contextlib.aclosing(shared.generate(asked)) as outputs:
            async for _ in outputs:
                if way == 0:
                    return
                if way == 1:
                    raise ConnectionResetError
                await asyncio.Event().wait()

    async def test() -> None:
        before = len(asyncio.all_tasks())
        staying = [request(f"stay{i}", 30, prompt=(1 + i % 7, 2, 3)) for i in range(134)]
        leaving = [request(f"leave{i}", 100, prompt=(9, 1 + i % 5)) for i in range(66)]
        tasks = [asyncio.create_task(hang_up(asked, i % 3)) for i, asked in enumerate(leaving)]
        answers = asyncio.gather(*(answer(shared, asked) for asked in staying))
        # The last third waits for ever until it is cancelled, as a dropped connection cancels its handler.
        await until(lambda: all(task.done() for i, task in enumerate(tasks) if i % 3 < 2))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        tokens = await answers
        assert all(len(one) == 30 for one in tokens)
        for i, one in enumerate(tokens):
            assert one == tokens[i % 7]
        await idle(shared)
        assert len(asyncio.all_tasks()) == before

    loop.run(test())


def test_outputs_that_pile_up_arrive_as_one(shared: EngineClient, loop: asyncio.Runner) -> None:
    async def test() -> None:
        expected = await answer(shared, request("a", 40))
        async with contextlib.aclosing(shared.generate(request("b", 40, logprobs=1))) as outputs:
            taken = [await anext(outputs)]
            await until(lambda: not shared.stats.running)
            # On a quick machine everything may have piled up before the first was taken.
            taken += [output async for output in outputs]
            assert len(taken) <= 2
            assert [token for output in taken for token in output.token_ids] == expected
            logprobs = [entry for output in taken for entry in output.logprobs or []]
            assert [entry.chosen.token_id for entry in logprobs] == expected
            assert taken[-1].finish_reason == "length"

    loop.run(test())


def test_an_abort_from_outside_ends_the_iterator(shared: EngineClient, loop: asyncio.Runner) -> None:
    async def test() -> None:
        async def read() -> list[str | None]:
            return [output.finish_reason async for output in shared.generate(request("long", 200))]

        assert shared.pid is not None
        # Held still, the engine cannot have ended the request before it hears of the abort.
        os.kill(shared.pid, signal.SIGSTOP)
        try:
            reading = asyncio.create_task(read())
            await until(lambda: "long" in shared._streams)
            shared.abort(["long", "unknown"])
        finally:
            os.kill(shared.pid, signal.SIGCONT)
        assert (await reading)[-1] == "abort"
        await idle(shared)

    loop.run(test())


def test_a_request_that_cannot_run_is_rejected_with_words(shared: EngineClient, loop: asyncio.Runner) -> None:
    async def test() -> None:
        [output] = [output async for output in shared.generate(request("foreign", prompt=(VOCAB_SIZE,)))]
        assert output.finish_reason == "rejected"
        assert "prompt" in (output.error or "")
        assert await answer(shared, request("next"))

    loop.run(test())


def test_a_message_that_nobody_understands_changes_nothing(shared: EngineClient, loop: asyncio.Runner) -> None:
    async def test() -> None:
        assert shared._running is not None
        pid, restarts = shared.pid, shared.restarts
        for junk in (b"", b"junk", b"\x91\xc0", b"\x91\x81\xa4type\xa5shape"):
            shared._running._push.send(junk)
        assert len(await answer(shared, request("after"))) == 8
        assert (shared.pid, shared.restarts) == (pid, restarts)

    loop.run(test())


def test_steps_and_clocks_are_reported(shared: EngineClient, loop: asyncio.Runner) -> None:
    steps: list[EngineStats] = []
    clocks: list[RequestTimes] = []

    def note(stats: EngineStats, finished: list[RequestTimes]) -> None:
        steps.append(stats)
        clocks.extend(finished)
        raise RuntimeError("a listener's fault is its own")

    async def test() -> None:
        shared.on_step = note
        await answer(shared, request("timed", 10))
        await until(lambda: bool(clocks))
        shared.on_step = None
        assert [times.request_id for times in clocks] == ["timed"]
        assert len(steps) >= 10
        tick = shared.stats.tick
        await until(lambda: shared.stats.tick > tick)
        assert shared.alive

    loop.run(test())


def test_the_engine_process_loads_no_tokenizer(shared: EngineClient) -> None:
    maps = {Path(region.path).name for region in psutil.Process(shared.pid).memory_maps()}
    assert any(name.startswith("libtorch_cpu") for name in maps)
    assert not any(name.startswith("tokenizers") for name in maps)


def test_an_engine_process_is_given_the_level_of_its_clients_log(config: EngineConfig) -> None:
    root = logging.getLogger()
    before = root.level
    try:
        for level in (logging.DEBUG, logging.ERROR):
            root.setLevel(level)
            with zmq.Context() as context, context.socket(zmq.PUSH) as push, context.socket(zmq.PULL) as pull:
                binding = Binding(config, push, pull)
                binding.remove()
                assert binding.handover.log_level == level
    finally:
        root.setLevel(before)


def test_the_sockets_are_out_of_reach_of_others_and_then_of_everybody(
    shared: EngineClient, config: EngineConfig
) -> None:
    with zmq.Context() as context, context.socket(zmq.PUSH) as push, context.socket(zmq.PULL) as pull:
        binding = Binding(config, push, pull)
        assert stat.S_IMODE(Path(binding.handover.folder or "").stat().st_mode) == 0o700
        binding.remove()
    assert shared._running is not None
    assert not Path(shared._running._binding.handover.folder or "").exists()
    assert psutil.Process(shared.pid).cmdline()[-1] == "plimsoll.runtime.engine.transport.process"


def test_without_a_folder_for_sockets_encrypted_loopback_serves(narrow: EngineClient, loop: asyncio.Runner) -> None:
    async def test() -> None:
        assert narrow._running is not None
        handover = narrow._running._binding.handover
        assert handover.requests.startswith("tcp://127.0.0.1:")
        assert handover.key
        with zmq.Context() as context, context.socket(zmq.PUSH) as stranger:
            stranger.setsockopt(zmq.LINGER, 0)
            stranger.connect(handover.outputs)
            stranger.send(encode_message(EngineFailed(error="a lie")))
            assert len(await answer(narrow, request("a"))) == 8
        assert narrow._running.refused is None

    loop.run(test())


def test_a_killed_engine_comes_back_and_answers_as_before(shared: EngineClient, loop: asyncio.Runner) -> None:
    async def test() -> None:
        client, restarts = shared, shared.restarts
        before = await answer(client, request("before"))
        outputs = [client.generate(request(f"long{i}", 240)) for i in range(5)]
        await asyncio.gather(*(anext(stream) for stream in outputs))
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        died = 0
        for stream in outputs:
            try:
                # On a machine that let this test wait, one may have had its whole answer before.
                assert [output.finish_reason async for output in stream][-1:] == ["length"]
            except EngineDead as error:
                assert "signal 9" in str(error)  # noqa: PT017 - either end is right
                died += 1
        assert died
        assert client.inflight == 0
        assert not client.ready
        assert client.alive
        with pytest.raises(EngineDead):
            await answer(client, request("between"))
        await client.wait_ready(SECONDS)
        assert client.restarts == restarts + 1
        assert await answer(client, request("after")) == before
        assert client.stats.generation_tokens == len(before)
        await idle(client)

    loop.run(test())


def test_a_row_of_crashes_ends_in_giving_up(config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "QUICK_CRASHES", 2)

    async def test() -> None:
        client = EngineClient(config)
        await client.start()
        for _ in range(2):
            await until(lambda: client.pid is not None)
            pid = client.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: client.pid != pid)  # type: ignore[misc]
        with pytest.raises(EngineDead, match="died 2 times in a row, at last: killed by signal 9"):
            await client.wait_ready(SECONDS)
        assert not client.alive
        assert client.restarts == 1
        await client.close()

    asyncio.run(test())


def test_a_configuration_that_cannot_be_served_is_told_once(config: EngineConfig, tmp_path: Path) -> None:
    async def test() -> None:
        client = EngineClient(EngineConfig(model=str(tmp_path / "nowhere")))
        await client.start()
        with pytest.raises(EngineDead, match="nowhere"):
            await client.wait_ready(SECONDS)
        assert "nowhere" in (client.failure or "")
        assert (client.restarts, client.alive, client.ready, client.pid) == (0, False, False, None)
        with pytest.raises(EngineDead, match="nowhere"):
            await answer(client, request("a"))
        await client.close()

    asyncio.run(test())


def test_a_full_queue_is_busy_and_nothing_else_suffers(narrow: EngineClient, loop: asyncio.Runner) -> None:
    async def test() -> None:
        results = await asyncio.gather(
            *(answer(narrow, request(f"r{i}", 60)) for i in range(8)), return_exceptions=True
        )
        busy = [result for result in results if isinstance(result, EngineBusy)]
        served = [result for result in results if isinstance(result, list)]
        assert busy
        assert served
        assert len(busy) + len(served) == 8
        assert all(len(tokens) == 60 for tokens in served)
        await idle(narrow)
        assert len(await answer(narrow, request("later"))) == 8

    loop.run(test())


def test_closing_ends_what_runs(config: EngineConfig) -> None:
    async def test() -> None:
        client = EngineClient(config)
        with pytest.raises(EngineDead):
            await answer(client, request("early"))
        await client.start()
        await client.wait_ready(SECONDS)
        assert client.pid is not None
        process = psutil.Process(client.pid)
        stream: AsyncIterator[TokenOutput] = client.generate(request("long", 240))
        await anext(stream)
        assert client._running is not None
        folder = Path(client._running._binding.handover.folder or "")
        await client.close()
        assert not folder.exists()
        with pytest.raises(EngineDead):
            await drain(stream)
        assert not process.is_running()
        assert (client.alive, client.ready, client.restarts) == (False, False, 0)
        await client.close()

    asyncio.run(test())
