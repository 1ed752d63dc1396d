"""A reflector lists, watches, and goes on after every answer that an API server may give."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.operator import kinds, reflector
from plimsoll.operator.kinds import Kind
from plimsoll.operator.reflector import Reflector, lines

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Heard:
    """Takes in what a reflector finds, and ends the reflector once it has heard `enough`."""

    def __init__(self, enough: int) -> None:
        self.enough = enough
        self.events: list[tuple[str | None, str]] = []
        self.statuses: list[tuple[int, bool]] = []
        self.errors: list[str] = []
        self.task: asyncio.Task[None] | None = None

    def answered(self, kind: Kind, namespace: str | None, status: int, *, watching: bool) -> None:
        self.statuses.append((status, watching))

    def failed(self, kind: Kind, namespace: str | None, error: str) -> None:
        self.errors.append(error)

    def heard(self, kind: Kind, event: str | None, raw: dict[str, Any]) -> None:
        self.events.append((event, raw["metadata"]["name"]))
        assert (raw["kind"], raw["apiVersion"]) == (kind.name, kind.api_version)
        if len(self.events) >= self.enough and self.task is not None:
            self.task.cancel()
        if raw.get("breaks"):
            raise RuntimeError


def pod(name: str, version: int, **more: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "resourceVersion": str(version)}, **more}


def event(kind: str, name: str, version: int, **more: Any) -> bytes:
    return json.dumps({"type": kind, "object": pod(name, version, **more)}).encode() + b"\n"


def listing(*names: str, version: int = 1, more: str = "") -> Answer:
    items = [{"metadata": {"name": name, "resourceVersion": "1"}} for name in names]

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"metadata": {"resourceVersion": str(version), "continue": more}, "items": items})

    return answer


def watching(*sent: bytes, cut: bool = False) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        found = web.StreamResponse()
        await found.prepare(request)
        for data in sent:
            await found.write(data)
        if cut:
            assert request.transport is not None
            request.transport.abort()
        return found

    return answer


def status(code: int, **headers: str) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"kind": "Status", "code": code}, status=code, headers=headers)

    return answer


async def cut(request: web.Request) -> web.StreamResponse:
    half = web.StreamResponse(headers={"Content-Length": "100"})
    await half.prepare(request)
    await half.write(b'{"items": [')
    assert request.transport is not None
    request.transport.abort()
    return half


def reflect(monkeypatch: pytest.MonkeyPatch, enough: int, *answers: Answer) -> tuple[Heard, list[str]]:
    """What is heard of an API server that gives these answers, one a request; and what each request was for."""
    monkeypatch.setattr(reflector, "LEAST_PAUSE", 0.001)
    monkeypatch.setattr(reflector, "MOST_PAUSE", 0.01)
    left, asked, heard = list(answers), list[str](), Heard(enough)

    async def handle(request: web.Request) -> web.StreamResponse:
        query = request.query
        assert query["labelSelector"] == kinds.POD.selector
        begins = "watch" if "watch" in query else "list"
        asked.append(" ".join([begins, *(query[key] for key in ("resourceVersion", "continue") if key in query)]))
        return await (left.pop(0) if left else status(500))(request)

    async def run() -> None:
        application = web.Application()
        application.router.add_get("/api/v1/namespaces/ns/pods", handle)
        runner = web.AppRunner(application, shutdown_timeout=0)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            # One connection: an answer that keeps its own would let no other begin.
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
                one = Reflector(session, f"http://127.0.0.1:{site.port}/", kinds.POD, "ns", dict, heard)
                heard.task = asyncio.ensure_future(one.run())
                done, _ = await asyncio.wait([heard.task], timeout=30)
                assert done, heard.errors
                assert heard.task.cancelled()
        finally:
            await runner.cleanup()

    asyncio.run(run())
    return heard, asked[: len(answers)]


def test_every_page_is_listed_then_the_watch_begins_where_the_list_was(monkeypatch: pytest.MonkeyPatch) -> None:
    heard, asked = reflect(
        monkeypatch, 5, listing("a", more="xyz"), listing("b", version=7),
        watching(event("ADDED", "c", 8), event("BOOKMARK", "", 20)), watching(event("DELETED", "a", 21)),
        watching(event("MODIFIED", "b", 22)),
    )  # fmt: skip
    assert asked == ["list", "list xyz", "watch 7", "watch 20", "watch 21"]
    assert heard.events == [(None, "a"), (None, "b"), ("ADDED", "c"), ("DELETED", "a"), ("MODIFIED", "b")]
    assert heard.errors == []
    assert heard.statuses[:3] == [(200, False), (200, False), (200, True)]


@pytest.mark.parametrize(
    ("trouble", "then"),
    [
        (watching(event("ADDED", "b", 5), event("ADDED", "c", 9)[:-9], cut=True), "watch 5"),
        (watching(event("ADDED", "b", 5), cut=True), "watch 5"),
        (watching(event("ADDED", "b", 5), b"<html>\n"), "watch 5"),
        (watching(event("ADDED", "b", 5), b'{"type": "MODIFIED"}\n'), "list"),
        (watching(event("ADDED", "b", 5), b"[1]\n"), "list"),
        (watching(event("ADDED", "b", 5), b'{"type": "ERROR", "object": {"code": 410}}\n'), "list"),
        (watching(event("ADDED", "b", 5), b'{"type": "ERROR", "object": 7}\n'), "list"),
        (watching(event("ADDED", "b", 5), b'{"type": "ERROR", "object": {"code": "x"}}\n'), "watch 5"),
        (watching(event("ADDED", "b", 5, breaks=True), event("ADDED", "d", 6)), "watch 6"),
        (watching(event("ADDED", "b", 5, x="y" * 300_000)), "watch 5"),
    ],
    ids=["cut in a line", "cut", "no JSON", "no object", "no event", "expired", "an odd error", "an odd code",
         "an object that cannot be taken in", "a long line"],
)  # fmt: skip
def test_whatever_ends_a_watch_it_goes_on(monkeypatch: pytest.MonkeyPatch, trouble: Answer, then: str) -> None:
    after = (listing("z"),) if then == "list" else (watching(event("ADDED", "z", 30)),)
    enough = 4 if then == "watch 6" else 3
    heard, asked = reflect(monkeypatch, enough, listing("a", version=3), trouble, *after)
    assert asked == ["list", "watch 3", then]
    assert [name for _, name in heard.events][:2] == ["a", "b"]
    assert heard.events[-1][1] == "z"


@pytest.mark.parametrize("code", [403, 404, 410, 429, 500, 503, 504])
def test_a_refusal_is_repeated_and_what_may_have_expired_is_listed_anew(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    busy = code in (429, 500, 503)
    after = (watching(event("ADDED", "b", 9)),) if busy else (listing("b"),)
    heard, asked = reflect(monkeypatch, 2, status(code), listing("a", version=3), status(code), *after)
    assert asked == ["list", "list", "watch 3", "watch 3" if busy else "list"]
    assert heard.statuses == [(code, False), (200, False), (code, True), (200, busy)]
    assert heard.errors == [f"RefusedError: the API server answered {code}"] * 2


def test_a_pause_that_the_api_server_asks_for_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "_LONGEST_PAUSE_ASKED", 0.01)
    odd = [status(503, **{"Retry-After": text}) for text in ("99999999", "-1", "nan", "Wed, 21 Oct 2026", "²")]
    heard, _ = reflect(monkeypatch, 1, *odd, listing("a"))
    assert heard.events == [(None, "a")]


def test_a_listing_that_expires_or_is_cut_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    heard, asked = reflect(
        monkeypatch, 3, cut, listing("a", more="xyz"), status(410), listing("a", more="xyz"), cut, listing("b")
    )
    assert asked == ["list", "list", "list xyz", "list", "list xyz", "list"]
    assert [name for _, name in heard.events][-1] == "b"


def test_an_object_that_no_decoder_can_read_spoils_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = '{"metadata": {"name": "deep"}, "spec": ' + '{"a":' * 3000 + "1" + "}" * 3001

    async def answer(request: web.Request) -> web.StreamResponse:
        good = '{"metadata": {"name": "good"}}'
        return web.Response(text='{"metadata": {"resourceVersion": "1"}, "items": [' + deep + ", " + good + "]}")

    heard, _ = reflect(monkeypatch, 2, answer)
    assert heard.events == [(None, "deep"), (None, "good")]


@pytest.mark.parametrize(
    "body", ["[]", "{}", '{"metadata": 1}', '{"metadata": {"resourceVersion": "1"}, "items": [1]}']
)
def test_an_answer_that_is_no_list_is_asked_for_again(monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=body)

    heard, asked = reflect(monkeypatch, 1, answer, listing("a"))
    assert (asked, heard.events) == (["list", "list"], [(None, "a")])


@given(st.lists(st.integers(1, 200), max_size=6))
def test_however_an_answer_is_cut_into_chunks_every_whole_line_is_read_once(cuts: list[int]) -> None:
    data = "a\n\nb é\nccc\n".encode() + b"x" * 100 + b"\nrest"
    places = [0, *sorted(one for one in cuts if one < len(data)), len(data)]

    async def chunks() -> AsyncIterator[bytes]:
        for start, end in itertools.pairwise(places):
            yield data[start:end]

    async def read() -> list[bytes]:
        return [line async for line in lines(chunks())]

    assert asyncio.run(read()) == [b"a", "b é".encode(), b"ccc", b"x" * 100]
