"""Limits of bodies: they follow the model's context, and what the server's owner says comes first."""

import asyncio
import contextlib
import json
from typing import Any

import pytest
from fastapi import Request
from starlette.responses import JSONResponse

from plimsoll.runtime.config import EngineConfig, ServerConfig
from plimsoll.runtime.server.asgi import Receive, Scope, Send
from plimsoll.runtime.server.body import json_body
from plimsoll.runtime.server.body_size import MIB, BodySize, body_size, too_large
from plimsoll.runtime.server.errors import ApiError
from plimsoll.runtime.server.forked import Forker
from plimsoll.runtime.server.lanes import Lanes, UnfinishedError
from plimsoll.runtime.server.limits import LimitBody, _at_most
from tests.support.doors import doors, post
from tests.support.endpoint import eventually


def size(model_len: int | None, names: Any = "options", **server: Any) -> BodySize:
    return body_size(ServerConfig(served_name="m", **server), EngineConfig(model="m", names=names), model_len)


def test_the_limit_grows_with_the_context_and_stays_within_its_bounds() -> None:
    found = [size(length) for length in (1, 128, 2048, 8192, 32_768, 131_072, 1 << 20)]
    assert [one.one for one in found] == sorted(one.one for one in found)
    assert (found[0].one, found[-1].one) == (MIB, 16 * MIB)
    assert found[2].one < 4 * MIB
    assert all(16 * MIB <= one.together <= 64 * MIB for one in found)


@pytest.mark.parametrize("length", [512, 4096, 32_768])
def test_requests_that_fill_the_context_are_within_the_limit(length: int) -> None:
    # The lengths are in tokens, of texts that take most bytes for one as clients write them.
    russian = json.dumps({"messages": [{"role": "user", "content": "слова " * (length * 4 // 6)}]})
    turns = json.dumps({"messages": [{"role": "assistant", "content": "."}] * (length // 5)})
    indented = json.dumps({"prompt": ("\n" + " " * 16 + "return None") * (length // 4)})
    batch = json.dumps({"prompt": [[151_642] * min(length, 1_000_000 // 64)] * 64})
    assert max(map(len, (russian, turns, indented, batch))) <= size(length).one


def test_what_the_owner_sets_comes_first_and_the_refusal_says_so() -> None:
    for one in (10_000, 32 * MIB):
        assert size(256, max_body_bytes=one).one == size(None, max_body_bytes=one).one == one
    assert size(256, max_body_bytes=32 * MIB, max_bodies_bytes=MIB).together == 32 * MIB
    assert "as --max-body-bytes says" in too_large(size(256, max_body_bytes=10_000))


@pytest.mark.parametrize(
    ("names", "said", "unsaid"),
    [("options", "--max-body-bytes", "maxLength"), ("manifest", "context.maxLength", "max")],
)
def test_a_refusal_names_what_the_owner_can_set_and_the_client_can_send(names: str, said: str, unsaid: str) -> None:
    words = too_large(size(256, names))
    assert "256 tokens" in words
    assert said in words
    assert unsaid not in words.replace(said, "")
    assert words.endswith("Send a shorter prompt or fewer messages.")


def test_a_model_that_still_loads_refuses_no_body_that_may_fit_it() -> None:
    assert size(None).one == size(1 << 20).one


def test_a_limit_is_read_anew_for_each_request() -> None:
    now = [2000, 5000]

    async def app(scope, receive, send) -> None:
        await receive()

    limited = LimitBody(app, lambda: BodySize(now[0], 10_000, "as this test says"))

    async def ask() -> None:
        scope = {"type": "http", "headers": [(b"content-length", b"3000")]}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b" " * 3000}

        await limited(scope, receive, None)  # type: ignore[arg-type]

    with pytest.raises(ApiError, match="2000 bytes") as caught:
        asyncio.run(ask())
    assert caught.value.status == 413
    del now[0]
    asyncio.run(ask())


def test_a_body_over_the_limit_is_refused_at_the_door() -> None:
    with doors(max_body_bytes=100) as server:
        assert server.status(post(b" " * 100, "Content-Length: 100", "Connection: close")) == 200
        assert server.status(post(b" " * 101, "Content-Length: 101", "Connection: close")) == 413


@pytest.mark.parametrize("zeros", ["", "0" * 5001])
def test_a_length_is_read_as_a_number_however_it_is_written(zeros: str) -> None:
    for number, fits in ((0, True), (100, True), (101, False), (2**64 - 1, False)):
        for space in ("", "\t", " \t "):
            assert _at_most(f"{zeros}{number}{space}".encode(), 100) == fits


def job(payload: bytearray, arguments: object, note: object) -> int:
    """Stands in for the preparer: hangs on a body that says so."""
    while payload.startswith(b"hang"):
        pass
    return len(payload)


def test_bodies_that_wait_for_a_worker_count_until_it_has_read_them() -> None:
    forker = Forker(job)
    lanes = Lanes(forker, 60.0, 60.0)
    waiting: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = await json_body(Request(scope, receive))
        waiting.append(len(body))
        length = 0
        with contextlib.suppress(UnfinishedError):
            length = await lanes.run(body, None, 64 * MIB)
        await JSONResponse(length)(scope, receive, send)

    def whole(start: bytes = b"") -> bytes:
        return post(start.ljust(MIB), f"Content-Length: {MIB}", "Connection: close")

    with contextlib.closing(lanes), doors(app, max_body_bytes=MIB, max_bodies_bytes=3 * MIB) as server:
        with contextlib.ExitStack() as stack:
            hung = stack.enter_context(server.connect(whole(b"hang")))
            eventually(lambda: len(waiting) == 1)
            others = [stack.enter_context(server.connect(whole())) for _ in range(2)]
            eventually(lambda: len(waiting) == 3)
            # Three bodies that have arrived are all that may be held, though none of them arrives any more.
            assert server.status(whole()) == 503
            forker.kill(1)
            assert all(b" 200 " in one.recv(4096) for one in (hung, *others))
        assert server.status(whole()) == 200
