"""Requests to an engine process through its client."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.engine.transport.client import EngineClient
from plimsoll.runtime.messages import EngineRequest, TokenOutput

SECONDS = 60
"""Far longer than anything here takes: what does not come by then does not come."""


def request(name: str, tokens: int = 8, *, prompt: tuple[int, ...] = (5, 6, 7), **params: Any) -> EngineRequest:
    chosen = SamplingParams(max_tokens=tokens, ignore_eos=True, **({"temperature": 0.0} | params))
    return EngineRequest(request_id=name, prompt_token_ids=list(prompt), params=chosen, arrival=time.monotonic())


async def answer(client: EngineClient, asked: EngineRequest) -> list[int]:
    tokens: list[int] = []
    async for output in client.generate(asked):
        assert output.error is None
        tokens += output.token_ids
    return tokens


async def drain(stream: AsyncIterator[TokenOutput]) -> None:
    async for output in stream:
        assert output.finish_reason is None


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.005)
