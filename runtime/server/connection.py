"""One HTTP connection, and how long and how large a request's head may be.

uvicorn bounds neither: connections that never finish a head would hold every descriptor this process may open, and a
head without an end would fill its memory.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Seconds from the connection, or from a later request's first byte, to the end of the head.
HEAD_SECONDS = 30.0
#: Bytes that may come in without completing a head or adding to a body: request line, headers, trailers.
HEAD_BYTES = 64 * 1024


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with a bound on heads; a client that breaks it is hung up on."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._fruitless = 0
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._expect_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_came()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._fruitless = 0
        super().on_body(body)

    def data_received(self, data: bytes) -> None:
        self._fruitless += len(data)
        super().data_received(data)
        if self._fruitless > HEAD_BYTES:
            self.transport.abort()

    def _expect_head(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _head_came(self) -> None:
        self._fruitless = 0
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: the request is answered as if it had not asked for another protocol, which HTTP allows."""
