"""Answers of untrusted HTTP servers: bytes as they were sent, up to a limit.

Unpacking is where few bytes become many, so packed answers are not asked for (`IDENTITY`) and are refused.
"""

import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING

from plimsoll.api.errors import CheckpointError

if TYPE_CHECKING:
    import httpx

#: Headers of a request whose answer is read here.
IDENTITY = {"Accept-Encoding": "identity"}
#: Bytes of an error or a list of models.
MOST = 4 << 20


def pieces(answer: "httpx.Response") -> Iterator[bytes]:
    """The body as it comes. Raises ValueError for a packed one."""
    _refuse_packed(answer)
    return answer.iter_raw()


def pieces_later(answer: "httpx.Response") -> AsyncIterator[bytes]:
    """The same of an asynchronous client."""
    _refuse_packed(answer)
    return answer.aiter_raw()


def body(answer: "httpx.Response", most: int = MOST) -> bytes:
    """The whole body. Raises ValueError for a packed one and for more than `most` bytes."""
    held = bytearray()
    for piece in pieces(answer):
        held += piece
        if len(held) > most:
            raise ValueError(f"an answer of more than {most >> 20} MiB")
    return bytes(held)


def limited(pieces: Iterable[bytes], most: int, seconds: float, where: str) -> Iterator[bytes]:
    """`pieces` of the host `where`. Raises CheckpointError past `most` bytes or `seconds` in all."""
    seen, until = 0, time.monotonic() + seconds
    for piece in pieces:
        seen += len(piece)
        if seen > most or time.monotonic() > until:
            what = f"more than {most} bytes" if seen > most else f"for more than {seconds:.0f} seconds"
            raise CheckpointError(
                f"{where} sends {what} where a list of files or an error was expected",
                field="spec.model.endpoint", fix="Check the service, and proxies before it",
            )  # fmt: skip
        yield piece


def _refuse_packed(answer: "httpx.Response") -> None:
    how = answer.headers.get("content-encoding", "identity").strip().lower()
    if how not in ("", "identity"):
        raise ValueError(f"an answer packed as {how[:40]}, which was not asked for")
