"""How much of a request's body is held, of one request and of all together, and for how long it may arrive."""

import asyncio
from collections.abc import Callable, MutableMapping
from typing import Any

from plimsoll.runtime.server.asgi import App, Receive, Scope, Send
from plimsoll.runtime.server.body_size import BodySize, too_large
from plimsoll.runtime.server.errors import ApiError

#: Seconds a client has to send its body.
SECONDS = 60


class Held:
    """The body of one request, as far as it has arrived and was not used yet."""

    def __init__(self, now: float) -> None:
        self.bytes = 0
        self.whole = False
        """The body has arrived, and its request is being worked on."""
        self.spent = 0.0
        """Bytes times seconds that they were held, until `since`."""
        self.since = now
        self.refused = False
        self.timer: asyncio.Timeout | None = None
        """Of the part that is awaited."""

    def cost(self, now: float) -> float:
        """Byte-seconds that this body has cost until `now`."""
        return self.spent + self.bytes * (now - self.since)

    def grow(self, size: int, now: float) -> None:
        """Count `size` more bytes from `now` on."""
        self.spent, self.since = self.cost(now), now
        self.bytes += size


class Bodies:
    """What all bodies hold together.

    Where they would hold more than `most()` bytes, the body that took most bytes for most seconds is refused: a client
    that stalls loses its place to one that sends.
    """

    def __init__(self, most: Callable[[], int]) -> None:
        self.most = most
        self.bytes = 0
        self._held: set[Held] = set()

    def add(self, body: Held, size: int) -> None:
        """Counts `size` more bytes of `body`. Raises ApiError 503 where `body` is the one to be refused."""
        now = asyncio.get_running_loop().time()
        body.grow(size, now)
        self.bytes += size
        self._held.add(body)
        while self.bytes > self.most():
            arriving = [one for one in self._held if not one.whole]
            worst = max(arriving, key=lambda one: one.cost(now), default=body)
            self.drop(worst)
            if worst is body:
                raise _crowded()
            worst.refused = True
            if worst.timer is not None:
                worst.timer.reschedule(now)

    def drop(self, body: Held) -> None:
        """Nothing of `body` is held any more; more than once is harmless."""
        self.bytes -= body.bytes
        body.bytes = 0
        self._held.discard(body)


class LimitBody:
    """ASGI middleware: refuses what is larger than `max_bytes`, what does not arrive, and what does not fit.

    A body counts until the application asks for what comes after it, or has answered.

    Args:
        app: the application.
        size: the limits now; 413 by the Content-Length of a body, or as its parts come in.
    """

    def __init__(self, app: App, size: Callable[[], BodySize]) -> None:
        self.app = app
        self.size = size
        self.bodies = Bodies(lambda: size().together)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # One limit for the whole body, also where the model finishes loading meanwhile.
        limit = self.size()
        for name, value in scope["headers"]:
            if name == b"content-length" and not _at_most(value, limit.one):
                raise _too_large(limit)
        loop = asyncio.get_running_loop()
        seen, body, began = 0, Held(loop.time()), loop.time()

        async def counted() -> MutableMapping[str, Any]:
            nonlocal seen
            if body.whole:
                self.bodies.drop(body)
                return await receive()
            try:
                async with asyncio.timeout_at(began + SECONDS) as body.timer:
                    message = await receive()
            except TimeoutError:
                raise _crowded() if body.refused else _late() from None
            finally:
                body.timer = None
            if body.refused:
                raise _crowded()
            if message["type"] == "http.request":
                size = len(message.get("body", b""))
                seen += size
                if seen > limit.one:
                    raise _too_large(limit)
                if size:
                    self.bodies.add(body, size)
                body.whole = not message.get("more_body", False)
            return message

        try:
            await self.app(scope, counted, send)
        finally:
            self.bodies.drop(body)


def _at_most(length: bytes, most: int) -> bool:
    """Whether a Content-Length is up to `most`. The HTTP parser has refused all but numbers below 2**64.

    Zeros before such a number may be thousands, which Python refuses to read, and a tab may follow it.
    """
    return int(length.strip().lstrip(b"0") or b"0") <= most


def _too_large(size: BodySize) -> ApiError:
    # What is left of the body is not read, so the connection cannot be used again.
    return ApiError(413, too_large(size), code="request_too_large", headers={"Connection": "close"})


def _late() -> ApiError:
    return ApiError(
        408, f"The body did not arrive within {SECONDS} s.", code="timeout", headers={"Connection": "close"}
    )


def _crowded() -> ApiError:
    return ApiError(
        503,
        "The bodies of all requests together are larger than this server holds, and this one took most of it.",
        code="overloaded",
        headers={"Connection": "close", "Retry-After": "1"},
    )
