"""An answer that would end all watches becomes one that they live with."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web

from plimsoll.operator.answers import soften

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def _softened(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    response = await handler(request)
    await soften(response)
    return response


def asked(handler: Handler, query: str) -> tuple[int, bytes]:
    """Status and content, read as kopf reads a watch, of an answer of `handler` after softening."""

    async def run() -> tuple[int, bytes]:
        app = web.Application()
        app.router.add_get("/pods", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            url = f"http://127.0.0.1:{runner.addresses[0][1]}/pods{query}"
            async with aiohttp.ClientSession(middlewares=(_softened,)) as session, session.get(url) as response:
                if "watch" not in query:
                    return response.status, await response.read()
                return response.status, b"".join([chunk async for chunk in response.content.iter_chunked(1 << 20)])
        finally:
            await runner.cleanup()

    return asyncio.run(run())


async def _gone(request: web.Request) -> web.StreamResponse:
    return web.json_response({"kind": "Status", "code": 410}, status=410)


async def _cut(request: web.Request) -> web.StreamResponse:
    half = web.StreamResponse(headers={"Content-Length": "100"})
    await half.prepare(request)
    await half.write(b'{"items": [')
    assert request.transport is not None
    request.transport.abort()
    return half


async def _well(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b'{"items": []}\n')


def test_a_watch_that_has_expired_ends_with_the_event_that_says_so() -> None:
    status, content = asked(_gone, "?watch=true&resourceVersion=5")
    assert status == 200
    (line,) = content.splitlines()
    assert json.loads(line) == {"type": "ERROR", "object": {"code": 410}}


def test_a_listing_that_has_expired_is_begun_anew_and_not_repeated() -> None:
    with pytest.raises(aiohttp.ClientPayloadError, match="expired"):
        asked(_gone, "?limit=250&continue=abc")


def test_what_cannot_expire_is_asked_for_again() -> None:
    with pytest.raises(aiohttp.ClientConnectionError, match="expired"):
        asked(_gone, "?limit=250")


def test_an_answer_that_was_cut_is_asked_for_again() -> None:
    with pytest.raises(aiohttp.ClientConnectionError, match="cut"):
        asked(_cut, "?limit=250")


@pytest.mark.parametrize("query", ["", "?watch=true"])
def test_what_is_well_is_left_alone(query: str) -> None:
    assert asked(_well, query) == (200, b'{"items": []}\n')


async def _deep(request: web.Request) -> web.StreamResponse:
    return web.Response(text='{"items": [{"spec": ' + '{"a":' * 3000 + "1" + "}" * 3001 + ', {"good": "[{"}]}')


def test_an_object_that_no_decoder_can_read_spoils_no_list() -> None:
    status, content = asked(_deep, "?limit=250")
    assert (status, json.loads(content)["items"][1]) == (200, {"good": "[{"})
