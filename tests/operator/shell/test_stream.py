"""What a watch tells reaches the cache at once, and kopf keeps count of it."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.operator.stream import Stream

Told = list[tuple[str, dict[str, Any]]]


class Wire:
    """An answer that arrives in these chunks, whatever size is asked for."""

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = chunks

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk


def event(kind: str, version: int, **more: Any) -> dict[str, Any]:
    return {"type": kind, "object": {"metadata": {"name": "a", "resourceVersion": str(version)}, **more}}


def line(of: dict[str, Any]) -> bytes:
    return json.dumps(of).encode() + b"\n"


def read(chunks: list[bytes], told: Told) -> bytes:
    """What kopf gets to read."""

    def tell(kind: str, found: dict[str, Any]) -> None:
        told.append((kind, found))
        if found.get("breaks"):
            raise RuntimeError

    async def all_of_it() -> bytes:
        return b"".join([chunk async for chunk in Stream(Wire(chunks), tell).iter_chunked(1 << 20)])

    return asyncio.run(all_of_it())


def versions(data: bytes) -> list[str]:
    return [json.loads(one)["object"]["metadata"]["resourceVersion"] for one in data.splitlines()]


@given(st.lists(st.integers(1, 200), max_size=6))
def test_however_an_answer_is_cut_into_chunks_every_event_is_told_once(cuts: list[int]) -> None:
    events = [event("ADDED", 1, spec={"x": "é"}), event("MODIFIED", 2), event("DELETED", 3), event("ADDED", 4)]
    data = b"".join(line(one) for one in events)
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    told: Told = []
    left = read([data[a:b] for a, b in itertools.pairwise(places)], told)
    assert told == [(one["type"], one["object"]) for one in events]
    assert versions(left) == ["1", "2", "3", "4"], "where a watch goes on after it has ended"


def test_kopf_hears_of_what_it_must_forget_and_of_what_ends_a_watch() -> None:
    gone, error = event("DELETED", 3), {"type": "ERROR", "object": {"code": 410}}
    bookmark = event("BOOKMARK", 9)
    told: Told = []
    left = read([line(event("MODIFIED", 2)), line(gone), line(bookmark), line(error)], told)
    first, *others = [json.loads(one) for one in left.splitlines()]
    assert first == {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "2"}}}
    assert others == [gone, bookmark, error]
    assert [kind for kind, _ in told] == ["MODIFIED", "DELETED"]


def test_an_answer_that_is_none_or_was_cut_is_left_to_kopf() -> None:
    for data in (b"<html>\n", b"[1]\n", b'{"type": "ADDED"}\n', line(event("ADDED", 1))[:-9]):
        told: Told = []
        assert read([data], told) == data
        assert told == []


def test_one_event_that_cannot_be_taken_in_ends_no_watch() -> None:
    told: Told = []
    left = read([line(event("ADDED", 1, breaks=True)), line(event("ADDED", 2))], told)
    assert versions(left) == ["1", "2"]
    assert len(told) == 2


@pytest.mark.parametrize("ends", [True, False], ids=["it ends", "it is left while it runs"])
def test_an_answer_gives_its_connection_back(ends: bool) -> None:
    told: Told = []
    over = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        found = web.StreamResponse()
        await found.prepare(request)
        await found.write(line(event("ADDED", 1)))
        if not ends:
            await over.wait()
        return found

    async def watch() -> int:
        application = web.Application()
        application.router.add_get("/", answer)
        runner = web.AppRunner(application, shutdown_timeout=0)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            connector = aiohttp.TCPConnector(limit=1)
            async with aiohttp.ClientSession(f"http://127.0.0.1:{site.port}", connector=connector) as session:
                for _ in range(2):  # the second would wait for the only connection
                    response = await session.get("/", timeout=aiohttp.ClientTimeout(total=30))
                    response.content = Stream(response.content, lambda *found: told.append(found))  # type: ignore[assignment]
                    async with response:
                        async for _ in response.content.iter_chunked(1 << 20):
                            if not ends:
                                break
        finally:
            over.set()
            await runner.cleanup()
        return len(told)

    assert asyncio.run(watch()) == 2
