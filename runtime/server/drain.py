"""Letting go without dropping anyone: nothing new comes in, what runs may finish."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from plimsoll.runtime.server.asgi import App, Receive, Scope, Send
from plimsoll.runtime.server.errors import shutting_down

#: Only these take a turn of the engine; the rest is answered until the end.
GUARDED = frozenset({"/v1/chat/completions", "/v1/completions"})


class Gate:
    """Counts requests in flight. Once it is closed it lets none in."""

    def __init__(self) -> None:
        self.inside = 0
        self.closed = False
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Around one request.

        Raises:
            ApiError: 503 with Retry-After when the gate is closed.
        """
        if self.closed:
            raise shutting_down()
        self.inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.inside -= 1
            if not self.inside:
                self._empty.set()

    def close(self) -> None:
        self.closed = True

    async def emptied(self, seconds: float) -> bool:
        """Waits until nothing is inside, up to `seconds`. Returns whether that was reached."""
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True


class Admit:
    """ASGI middleware: generation passes through the gate, from its first byte read to its last byte sent."""

    def __init__(self, app: App, gate: Gate) -> None:
        self.app = app
        self.gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in GUARDED:
            await self.app(scope, receive, send)
            return
        with self.gate.enter():
            await self.app(scope, receive, send)
