"""Server-sent events, and noticing that the client has gone.

At 16 streams every engine step makes 16 events, on cores that the engine wants as well. So an event is bytes around
one encoded string: all that stays the same in a stream is encoded once.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

import msgspec
import structlog
from starlette.responses import Response

from plimsoll.runtime.server.asgi import ClientGoneError, Receive, Scope, Send
from plimsoll.runtime.server.errors import ApiError, timed_out

Result = TypeVar("Result")

log = structlog.get_logger("plimsoll.server")
#: Characters that many clients take for the end of a line, though the format does not: Python's `splitlines`, and so
#: httpx's `iter_lines`. JSON may hold them as they are, and only inside its strings.
LINE_ENDS = tuple((ends.encode(), b"\\u%04x" % ord(ends)) for ends in "\x85\u2028\u2029")
DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # nginx holds a response back until it has enough of it, unless a header says no.
    (b"x-accel-buffering", b"no"),
]


def encode(payload: Any) -> bytes:
    """JSON of one line, however a client splits lines."""
    data = msgspec.json.encode(payload)
    if not data.isascii():
        for raw, escaped in LINE_ENDS:
            data = data.replace(raw, escaped)
    return data


def event(payload: Any) -> bytes:
    """A server-sent event with `payload` as JSON."""
    return b"data: " + encode(payload) + b"\n\n"


def named(kind: str, payload: Any) -> bytes:
    """A server-sent event with a name of its own."""
    return b"event: " + kind.encode() + b"\n" + event(payload)


#: Stands for the text in a `Frame`. A field before it could only hold it if someone served a model by this name.
MARKER = "\x00text\x00"


class Frame:
    """Chunks of one choice that differ in nothing but their text, which is `MARKER` in `chunk`."""

    def __init__(self, chunk: dict[str, Any]) -> None:
        self.head, _, self.tail = event(chunk).partition(encode(MARKER))

    def event(self, text: str) -> bytes:
        """The event with `text` in its place."""
        return self.head + encode(text) + self.tail


async def while_connected(receive: Receive, work: Awaitable[Result]) -> Result:
    """Runs `work` and cancels it when the client hangs up. The request's body must have been read.

    Raises:
        ClientGoneError: the client hung up first.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_hung_up(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
            # What a cancelled task still has to say is of no use to anyone.
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Work(Protocol):
    """One request at work; either of the two is called."""

    async def complete(self) -> Any:
        """The whole answer, as what msgspec encodes."""

    def events(self) -> AsyncGenerator[bytes]:
        """The answer as whole server-sent events."""


def openai_failed(error: ApiError) -> bytes:
    """The last events of a chat or a completion that goes wrong."""
    return event(error.body()) + DONE


class EventStream(Response):
    """Sends what `events` yields, each as it comes.

    The status line goes out with the first event, so a request that is refused before (a full queue, a prompt
    that is too long) has a status of its own. What goes wrong later becomes an event.

    Args:
        events: yields whole events; it is closed when the client hangs up.
        seconds: the stream may take, until its last byte is sent.
        failed: the last events of a stream that goes wrong.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes], seconds: float, failed: Callable[[ApiError], bytes] = openai_failed
    ) -> None:
        super().__init__()
        self.events, self.seconds, self.failed = events, seconds, failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Who hung up needs neither the rest nor an error.
        with contextlib.suppress(ClientGoneError):
            await while_connected(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        started = False
        try:
            try:
                async with asyncio.timeout(self.seconds), contextlib.aclosing(self.events) as events:
                    async for data in events:
                        if not started:
                            await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
                            started = True
                        await send({"type": "http.response.body", "body": data, "more_body": True})
            except TimeoutError:
                raise timed_out(self.seconds) from None
        except Exception as error:
            if not started:
                raise
            if not isinstance(error, ApiError):
                log.exception("stream failed")
                error = ApiError(500, "The server failed on this request.", code="internal_error")
            await send({"type": "http.response.body", "body": self.failed(error), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
