"""One HTTP connection: how long and how large a request's head may be, and how long an answer may lie unread.

uvicorn bounds none of it: connections that never finish a head, and answers that no client reads, would hold every
descriptor and all the memory that this process may have.
"""

import asyncio
import resource
import time
from typing import Any

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from plimsoll.runtime.server.asgi import QUIET_PATHS
from plimsoll.runtime.server.turns import Turns

#: Seconds from the connection, or from a later request's first byte, to the end of the head.
HEAD_SECONDS = 30.0
#: Bytes that may come in without completing a head or adding to a body: request line, headers, trailers.
HEAD_BYTES = 64 * 1024
#: Seconds that what is left of a body is read and thrown away, once the request has been answered.
REST_SECONDS = 10.0
#: In so many seconds a client reads at least `WRITE_BYTES` of what waits for it, or all of it.
WRITE_SECONDS = 30.0
WRITE_BYTES = 256 * 1024
#: The kernel's buffer of a connection for what was sent and not read: it counts as the pod's memory too.
SEND_BUFFER = 128 * 1024
#: Requests that may wait on a connection behind the one that is answered. Each takes a hundred times its bytes.
PIPELINED = 32
#: Requests that begin in one turn, and parts of bodies (256 KiB at most) that are read in one.
STARTS, PARTS = 4, 1
#: Descriptors that stay free for all that is no connection: the engine's start, keys, templates, the status port.
SPARE_DESCRIPTORS = 64

TARGET = "plimsoll.target"
"""Key in a request's scope: the host that its target names, as `GET http://host/path` does, which overrides Host."""


class Pace:
    """The turns of all connections of a server: probes apart, so that no queue of requests is before them."""

    def __init__(self) -> None:
        self.probes, self.requests, self.parts = Turns(STARTS), Turns(STARTS), Turns(PARTS)


class Flow(FlowControl):
    """uvicorn's flow control; a connection that was paused reads on when it is its turn."""

    def __init__(self, transport: asyncio.Transport, turns: Turns) -> None:
        super().__init__(transport)
        self._turns = turns
        self._wanted = self._asked = False

    def pause_reading(self) -> None:
        self._wanted = False
        super().pause_reading()

    def resume_reading(self) -> None:
        self._wanted = True
        if self.read_paused and not self._asked:
            self._asked = True
            self._turns.take(self._resume)

    def _resume(self) -> None:
        self._asked = False
        if self._wanted and not self._transport.is_closing():
            super().resume_reading()


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with these bounds; a client that breaks one is hung up on.

    Of more than `limit` connections of a server, or where descriptors run out, the one goes whose client has kept
    the server waiting for longest. `pace` is shared by all connections.
    """

    def __init__(self, *arguments: Any, limit: int, pace: Pace, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.limit, self.pace = limit, pace
        # Not by the loop's clock, which stands still while all that has come is taken in: the newest connection might
        # seem to have kept us waiting for as long as the oldest.
        self._owing_since = 0.0
        self._fruitless = 0
        self._late: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._left = 0

    @property
    def idle(self) -> bool:
        """Whether no request is here: nothing has come yet, a head is not complete, or all is answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def owing(self) -> bool:
        """Whether the client is to go on: with a request, or with the rest of a body."""
        return self.idle or self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = Flow(transport, self.pace.parts)
        self._expect_head()
        if len(self.connections) > self.limit or not _descriptors_left(transport):
            self._make_room()

    def _make_room(self) -> None:
        """Hangs up on the client that has kept us waiting for longest: on this one where all others wait for us."""
        owing = [one for one in self.connections if isinstance(one, Connection) and one.owing]
        leaves = min(owing, key=lambda one: one._owing_since)
        self.connections.discard(leaves)
        leaves.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        self._stop_watching()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._expect_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_came()
        if not self.url.startswith(b"/"):
            self.scope[TARGET] = _authority(self.url)  # type: ignore[literal-required]
        if len(self.pipeline) == PIPELINED:
            self.transport.abort()
            raise ConnectionAbortedError
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        def start() -> None:
            if not cycle.disconnected:
                super(Connection, self)._start_asgi_task(cycle, app)

        turns = self.pace.probes if cycle.scope["path"] in QUIET_PATHS else self.pace.requests
        turns.take(start)

    def on_body(self, body: bytes) -> None:
        self._fruitless = 0
        super().on_body(body)
        if self.idle:
            # The rest of a body whose request was answered before: read on in turn, like others.
            self.flow.pause_reading()
            self.flow.resume_reading()

    def on_message_complete(self) -> None:
        if self.idle:
            # The rest of a body whose request was answered before.
            self._head_came()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._owing_since = time.monotonic()
        if self.transport.get_write_buffer_size():
            self._watch()
        if self.idle and self.cycle.more_body and self._late is None:
            self._late = self.loop.call_later(REST_SECONDS, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        self._stop_watching()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        self._fruitless += len(data)
        super().data_received(data)
        if self._fruitless > HEAD_BYTES:
            self.transport.abort()

    def _expect_head(self) -> None:
        self._owing_since = time.monotonic()
        if self._late is None:
            self._late = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _head_came(self) -> None:
        self._fruitless = 0
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _watch(self) -> None:
        """Looks in `WRITE_SECONDS` whether the client has read of what waits for it now."""
        self._stop_watching()
        self._left = self.transport.get_write_buffer_size()
        self._unread = self.loop.call_later(WRITE_SECONDS, self._look)

    def _look(self) -> None:
        self._unread = None
        left = self.transport.get_write_buffer_size()
        if left > max(0, self._left - WRITE_BYTES):
            self.transport.abort()
        elif left:
            self._watch()

    def _stop_watching(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: the request is answered as if it had not asked for another protocol, which HTTP allows."""


def _descriptors_left(transport: asyncio.Transport) -> bool:
    """Whether more than `SPARE_DESCRIPTORS` are free: a new one has the lowest number that was."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    number: int = transport.get_extra_info("socket").fileno()
    return limit == resource.RLIM_INFINITY or number < limit - SPARE_DESCRIPTORS


def _authority(target: bytes) -> bytes:
    """Host and port of a request's target in absolute form, empty where it has none (`OPTIONS *`)."""
    return target.partition(b"://")[2].partition(b"/")[0].partition(b"?")[0] if b"://" in target else b""
