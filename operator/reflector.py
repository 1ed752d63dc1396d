"""Lists the objects of one kind in one namespace, then watches them, for as long as it runs.

This does what the reflector of client-go does. The watch of the `kubernetes` package would need a thread for each kind
and namespace, and makes model objects of each event. kopf did this work before, and this loop was all that was left of
its use: its handlers cost a millisecond per event, so events went past them; answers of the API server that would have
stopped it were rewritten on their way to it; and one watch that failed stopped all the others.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

import aiohttp
import structlog

from plimsoll.operator.cluster import decode
from plimsoll.operator.kinds import Kind

log = structlog.get_logger("plimsoll.operator.watch")

#: The API server ends a watch after so long, and the reflector begins another: the age of a watch is bounded.
WATCH_SECONDS = 240
#: Bookmarks come every minute; without a sign for so long a connection is dead.
SILENT_SECONDS = 150
#: Between attempts. A list or watch that lasted longer than the pause before it had begun well.
LEAST_PAUSE, MOST_PAUSE = 0.5, 15.0
_PAGE_SECONDS = 30.0
_CONNECT_SECONDS = 10.0
_PAGE = 250
_BUSY = frozenset({429, 500, 502, 503})
_LONGEST_PAUSE_ASKED = 60.0


class Listener(Protocol):
    """Who takes in what one reflector finds."""

    def answered(self, kind: Kind, namespace: str | None, status: int, *, watching: bool) -> None:
        """The API server answered with an HTTP `status` to a page of a list, or to a watch."""

    def failed(self, kind: Kind, namespace: str | None, error: str) -> None:
        """A list or a watch failed. Another attempt follows."""

    def heard(self, kind: Kind, event: str | None, raw: dict[str, Any]) -> object:
        """One object of a list (`event` is None), or one event of a watch: ADDED, MODIFIED, DELETED."""


class RefusedError(Exception):
    """The API server did not answer a request with what was wanted."""

    def __init__(self, message: str, status: int, after: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.after = status, after


class Reflector:
    """The list and the watch of one kind.

    Args:
        namespace: None means all of the cluster.
        credentials: headers that authenticate a request now.
    """

    def __init__(
        self, session: aiohttp.ClientSession, host: str, kind: Kind, namespace: str | None,
        credentials: Callable[[], Mapping[str, str]], listener: Listener,
    ) -> None:  # fmt: skip
        self._session, self._kind, self._namespace = session, kind, namespace
        self._url = host.rstrip("/") + kind.path(namespace)
        self._credentials, self._listener = credentials, listener
        self._version = ""
        """Where the watch goes on; empty: the objects have to be listed first."""

    async def run(self) -> None:
        """Until cancelled: no answer of an API server ends it."""
        clock, pause = asyncio.get_running_loop().time, LEAST_PAUSE
        while True:
            began, after = clock(), 0.0
            try:
                if not self._version:
                    await self._list()
                    began = clock()
                await self._watch()
                # It ended as agreed. One that ends at once again and again is no better than one that fails.
                if clock() - began > MOST_PAUSE:
                    pause = LEAST_PAUSE
                    continue
            except Exception as error:
                if isinstance(error, RefusedError):
                    after = error.after
                    # The version may be one that the API server has forgotten, or does not know yet (410, 504).
                    self._version = self._version if error.status in _BUSY else ""
                elif not isinstance(error, aiohttp.ClientError | OSError | ValueError):
                    log.exception("this is a bug")
                    self._version = ""
                self._listener.failed(self._kind, self._namespace, f"{type(error).__name__}: {error}"[:300])
            pause = LEAST_PAUSE if clock() - began > pause else pause
            await asyncio.sleep(max(after, pause * random.uniform(0.75, 1.25)))
            pause = min(pause * 2, MOST_PAUSE)

    async def _list(self) -> None:
        query = {"limit": str(_PAGE), **self._selector()}
        while True:
            timeout = aiohttp.ClientTimeout(total=_PAGE_SECONDS, sock_connect=_CONNECT_SECONDS)
            async with self._session.get(self._url, params=query, headers=self._headers(), timeout=timeout) as answer:
                data = await answer.read()
                self._check(answer, watching=False)
            page = decode(data)
            try:
                version, more = page["metadata"]["resourceVersion"], page["metadata"].get("continue")
                for raw in page.get("items") or ():
                    self._hear(None, {"apiVersion": self._kind.api_version, "kind": self._kind.name, **raw})
            except (KeyError, TypeError, AttributeError):
                raise RefusedError("the answer is no list", answer.status) from None
            if not more:
                self._version = version
                return
            query["continue"] = more

    async def _watch(self) -> None:
        query = {
            "watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_SECONDS),
            "resourceVersion": self._version, **self._selector(),
        }  # fmt: skip
        timeout = aiohttp.ClientTimeout(
            total=WATCH_SECONDS + 30, sock_connect=_CONNECT_SECONDS, sock_read=SILENT_SECONDS
        )
        async with self._session.get(self._url, params=query, headers=self._headers(), timeout=timeout) as answer:
            self._check(answer, watching=True)
            async for line in lines(answer.content.iter_any()):
                self._take(line)

    def _take(self, line: bytes) -> None:
        """One line of a watch.

        Raises:
            RefusedError: it says that the watch is over, or is no event at all.
            ValueError: it is no JSON.
        """
        event = decode(line)
        try:
            kind, raw = event["type"], event["object"]
            if kind == "ERROR":
                raise RefusedError(str(raw.get("message") or raw)[:200], int(raw.get("code") or 0))
            version = str(raw["metadata"]["resourceVersion"])
        except (KeyError, TypeError, AttributeError):
            raise RefusedError("a line of the watch is no event", 200) from None
        if kind in ("ADDED", "MODIFIED", "DELETED"):
            self._hear(kind, raw)
        self._version = version

    def _hear(self, event: str | None, raw: dict[str, Any]) -> None:
        try:
            self._listener.heard(self._kind, event, raw)
        except Exception:
            # One object must harm no other.
            log.exception("this is a bug")

    def _check(self, answer: aiohttp.ClientResponse, *, watching: bool) -> None:
        """Raises RefusedError for an answer that is neither a list nor a watch."""
        self._listener.answered(self._kind, self._namespace, answer.status, watching=watching)
        if answer.status != 200:
            text = answer.headers.get("Retry-After", "")
            after = min(float(text), _LONGEST_PAUSE_ASKED) if text.isascii() and text.isdecimal() else 0.0
            raise RefusedError(f"the API server answered {answer.status}", answer.status, after)

    def _selector(self) -> dict[str, str]:
        return {"labelSelector": self._kind.selector} if self._kind.selector else {}

    def _headers(self) -> dict[str, str]:
        return {"Accept": "application/json", **self._credentials()}


async def lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The whole lines of `chunks`, without empty ones. What an answer was cut in the middle of is no line."""
    rest: list[bytes] = []
    async for chunk in chunks:
        first, *others = chunk.split(b"\n")
        rest.append(first)
        for one in others:
            if line := b"".join(rest):
                yield line
            rest = [one]
