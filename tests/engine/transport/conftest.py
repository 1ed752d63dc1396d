"""One tiny engine process for each file of this area."""

import asyncio
from collections.abc import Iterator

import pytest

from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.transport.client import EngineClient
from tests.support.checkpoints import make_checkpoint
from tests.support.clients import SECONDS


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    folder = make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", tokenizer=False)
    return EngineConfig(
        model=str(folder), precision="float32", device="cpu", kv_cache_bytes=1 << 20, block_size=16, threads=1
    )


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def shared(config: EngineConfig, loop: asyncio.Runner) -> Iterator[EngineClient]:
    """One engine for the tests that leave it as they found it."""
    client = EngineClient(config)

    async def begin() -> None:
        await client.start()
        await client.wait_ready(SECONDS)

    loop.run(begin())
    yield client
    loop.run(client.close())
