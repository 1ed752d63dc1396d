"""A model over several machines: the same answers as on one, and a group that lives and dies together."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.engine.group.agent import Agent
from plimsoll.runtime.engine.transport.client import EngineClient, EngineDead
from plimsoll.runtime.llm import LLM
from tests.support.checkpoints import UNEVEN, make_checkpoint
from tests.support.clients import SECONDS, answer, drain, request, until
from tests.support.pods import followers, places, write_key

NODES = 2


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    """Heads and a width that ranks share unevenly."""
    folder = make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", **UNEVEN)
    return EngineConfig(
        model=str(folder), precision="float32", device="cpu", kv_cache_bytes=1 << 20, block_size=16, tensor=NODES,
        nodes=NODES, threads=1, memory=1 << 30,
    )  # fmt: skip


@pytest.fixture(scope="module")
def group(
    config: EngineConfig, loop: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[EngineClient, list[Agent]]]:
    seats = places(NODES, write_key(tmp_path_factory.mktemp("key")))
    client = EngineClient(config, membership=seats[0])

    async def begin() -> None:
        await client.start()
        await client.wait_ready(SECONDS)

    with followers(config, seats) as agents:
        loop.run(begin())
        yield client, agents
        loop.run(client.close())


def processes(client: EngineClient, agents: list[Agent]) -> list[psutil.Process]:
    """Of all ranks, rank 0 first."""
    assert client.pid is not None
    pids = [client.pid] + [one.process.pid for agent in agents if agent.crew for one in agent.crew.processes]
    return [psutil.Process(pid) for pid in pids]


def test_answers_are_those_of_one_rank(
    group: tuple[EngineClient, list[Agent]], config: EngineConfig, loop: asyncio.Runner
) -> None:
    client, agents = group
    params = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
    alone = msgspec.structs.replace(config, tensor=1, nodes=1)
    with LLM(alone.model, precision="float32", device="cpu", kv_cache_bytes=1 << 20, block_size=16, threads=1) as llm:
        prompt = request("one", 24).prompt_token_ids
        expected = llm.generate([prompt], params)[0].outputs[0].token_ids
    assert loop.run(answer(client, request("one", 24))) == expected
    assert client.info is not None
    assert [rank.rank for rank in client.info.ranks] == list(range(NODES))
    # They hear of it by the next pulse.
    loop.run(until(lambda: all(agent.serving for agent in agents)))


@pytest.mark.parametrize(("rank", "how"), [(1, signal.SIGKILL)])
def test_a_rank_that_dies_or_hangs_on_another_machine_takes_the_group_with_it_and_it_comes_back(
    group: tuple[EngineClient, list[Agent]], loop: asyncio.Runner, rank: int, how: signal.Signals
) -> None:
    client, agents = group

    async def test() -> None:
        before, restarts, old = await answer(client, request("before")), client.restarts, processes(client, agents)
        epoch = agents[0].epoch
        stream = client.generate(request("long", 200))
        await anext(stream)
        os.kill(old[rank].pid, how)
        async with asyncio.timeout(SECONDS):
            with pytest.raises(EngineDead):
                await drain(stream)
        await until(lambda: not any(one.is_running() and one.status() != "zombie" for one in old))
        await client.available(SECONDS)
        assert client.restarts == restarts + 1
        assert {agent.epoch for agent in agents} - {epoch, None}
        assert await answer(client, request("after")) == before

    loop.run(test())


def test_the_leader_alone_runs_a_draft_and_no_answer_changes(
    group: tuple[EngineClient, list[Agent]], config: EngineConfig, loop: asyncio.Runner, tmp_path: Path
) -> None:
    """The other machine has no draft at all."""
    wanted, seats = loop.run(answer(group[0], request("plain", 24))), places(NODES, write_key(tmp_path))
    drafted = msgspec.structs.replace(config, draft_model=config.model, speculative_tokens=4)

    async def test() -> None:
        client = EngineClient(drafted, membership=seats[0])
        await client.start()
        try:
            await client.wait_ready(SECONDS)
            assert await answer(client, request("drafted", 24)) == wanted
            assert client.stats.guesses_kept > 0
            assert client.info is not None
            first, second = client.info.ranks
            assert first.num_blocks == second.num_blocks
            assert first.kv_cache > 2 * second.kv_cache > 0
        finally:
            await client.close()

    with followers(config, seats):
        loop.run(test())
