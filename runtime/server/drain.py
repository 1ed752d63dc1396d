"""Draining: the server leaves its Service and finishes the requests that run.

On one machine nothing new comes in once that begins. In a cluster requests go on arriving for a while after a pod has
left its Service: they are served, on connections that end with them, until none has come for some seconds.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Receive, Scope, Send

from plimsoll.runtime.server.errors import shutting_down

#: Only these take a turn of the engine; the rest is answered until the end.
GUARDED = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"})


class Gate:
    """Counts requests in flight. Once it is closed it lets none in.

    Attributes:
        inside: requests in flight.
        draining: readiness is false and every response ends its connection; requests are still let in.
        closed: requests are refused.
        drained: draining has come to its end with nothing inside.
    """

    def __init__(self) -> None:
        self.inside = 0
        self.draining = False
        self.closed = False
        self.drained = False
        self._last = self._began = time.monotonic()
        self._empty = asyncio.Event()
        self._empty.set()

    def arrived(self) -> None:
        """Notes that a request of any kind has arrived."""
        self._last = time.monotonic()

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

    @property
    def leaving(self) -> bool:
        """Whether new requests should go to other servers."""
        return self.draining or self.closed

    def drain(self) -> None:
        """Begins to let go; once is enough, and more is harmless."""
        if not self.draining:
            self.draining = True
            self._began = time.monotonic()

    def reopen(self) -> None:
        """Ends draining: what drained for another's sake takes requests again."""
        self.draining = self.drained = False

    def close(self) -> None:
        """Mark the server as closed: it takes no further requests."""
        self.closed = True

    async def quieted(self, quiet: float, limit: float) -> bool:
        """Waits until nothing is inside and nothing has arrived for `quiet` seconds.

        No longer than `limit` seconds after `drain` was first called; further calls do not extend it.
        Returns whether it was reached; where it has been before, nothing has to be waited for but what is inside.
        """
        while (left := self._began + limit - time.monotonic()) > 0 or not self.inside:
            wait = 0.0 if self.drained else max(self._last, self._began) + quiet - time.monotonic()
            if self.inside:
                await self.emptied(left)
            elif wait <= 0 or left <= 0:
                self.drained = wait <= 0
                return self.drained
            else:
                await asyncio.sleep(min(wait, left))
        return False

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

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self.app = app
        self.gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in GUARDED:
            await self.app(scope, receive, send)
            return
        with self.gate.enter():
            await self.app(scope, receive, send)
