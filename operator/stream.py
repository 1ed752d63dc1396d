"""What a watch tells, taken off the wire: the cache hears it at once, and kopf how far the watch has come.

For one event kopf makes a task, a queue, copies and some ten contexts: a millisecond of processor, many times what the
cache needs, and with a thousand new deployments nearly half of what the operator costs. Lists, reconnecting and ends of
watches stay kopf's.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import msgspec
import structlog

from plimsoll.operator.cluster import decode

log = structlog.get_logger("plimsoll.operator.watch")

Tell = Callable[[str, dict[str, Any]], object]
"""Takes the type of an event (ADDED, MODIFIED, DELETED) and its object."""


class Content(Protocol):
    """What kopf reads of an answer: an aiohttp.StreamReader, or what stands in its place."""

    def iter_chunked(self, size: int) -> AsyncIterator[bytes]: ...


class Stream:
    """The lines of a watch as kopf should read them, each event told of on the way."""

    def __init__(self, content: Content, tell: Tell) -> None:
        self._content, self._tell = content, tell

    def __getattr__(self, name: str) -> Any:
        """What aiohttp asks of its own content when an answer ends or is left."""
        return getattr(self._content, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """Chunks of whole lines of JSON; what the answer was cut in the middle of comes last, as it is."""
        rest = b""
        async for chunk in self._content.iter_chunked(size):
            *lines, rest = (rest + chunk).split(b"\n")
            if lines:
                yield b"".join(self._left(line) + b"\n" for line in lines)
        if rest:
            yield rest

    def _left(self, line: bytes) -> bytes:
        """What kopf has to know of a line."""
        try:
            event = decode(line)
            kind, found = event["type"], event["object"]
            if kind not in ("ADDED", "MODIFIED", "DELETED"):
                return line
            version = found["metadata"]["resourceVersion"]
        except (ValueError, KeyError, TypeError):
            return line  # It is kopf that knows what to do with an answer that is none.
        try:
            self._tell(kind, found)
        except Exception:
            log.exception("this is a bug")
        # Of what it listed and what is gone now it keeps something for ever, if it is not told.
        return msgspec.json.encode(_deleted(found) if kind == "DELETED" else _bookmark(version))


def _deleted(found: dict[str, Any]) -> dict[str, Any]:
    about = {key: found["metadata"].get(key) for key in ("name", "namespace", "uid", "resourceVersion")}
    named = {key: found[key] for key in ("apiVersion", "kind") if key in found}
    return {"type": "DELETED", "object": {**named, "metadata": {k: v for k, v in about.items() if v is not None}}}


def _bookmark(version: str) -> dict[str, Any]:
    return {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": version}}}
