"""What an API server may answer and kopf would end of, all its watches with it, turned into what kopf lives with."""

import asyncio
import contextlib

import aiohttp
import msgspec
from aiohttp.base_protocol import BaseProtocol

from plimsoll.operator.shape import lenient

GONE = 410
_LIMIT = 1 << 16
#: kopf decodes an answer in more frames than are on the stack here, and a decoder counts them.
_KOPFS_FRAMES = 100


async def soften(response: aiohttp.ClientResponse) -> None:
    """Changes the answer to what kopf can bear. What is no watch has been read to its end then.

    Raises:
        aiohttp.ServerDisconnectedError: it was cut in the middle, or says that something has expired which cannot; kopf
            asks again.
        aiohttp.ClientPayloadError: the listing that it goes on with has expired; kopf lists from the beginning.
    """
    if response.url.query.get("watch") == "true":
        if response.status == GONE:
            # As most API servers say it: an event, upon which kopf lists and watches anew.
            response.status, response.content = 200, _one_line({"type": "ERROR", "object": {"code": GONE}})
        return
    try:
        await response.read()
    except aiohttp.ClientPayloadError as error:
        raise aiohttp.ServerDisconnectedError(f"an answer was cut: {error}") from None
    if response.status == 200:
        _flatten(response)
    if response.status == GONE and "continue" in response.url.query:
        raise aiohttp.ClientPayloadError("the listing has expired")
    if response.status == GONE:
        raise aiohttp.ServerDisconnectedError("nothing here can have expired")


def _flatten(response: aiohttp.ClientResponse) -> None:
    """Takes out what one object has nested so deeply, or so large a number, that kopf could not decode the list."""
    body = response._body or b""
    try:
        _decoded(body, _KOPFS_FRAMES)
    except (ValueError, RecursionError):
        with contextlib.suppress(ValueError):  # Not JSON: kopf says so.
            response._body = msgspec.json.encode(lenient(body))


def _decoded(body: bytes, frames: int) -> object:
    return _decoded(body, frames - 1) if frames else msgspec.json.decode(body)


def _one_line(event: object) -> aiohttp.StreamReader:
    loop = asyncio.get_running_loop()
    made = aiohttp.StreamReader(BaseProtocol(loop), _LIMIT, loop=loop)
    made.feed_data(msgspec.json.encode(event) + b"\n")
    made.feed_eof()
    return made
