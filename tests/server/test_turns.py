"""Requests and bodies that come all at once: begun and read in turn, so that what others ask for comes between."""

import asyncio
import contextlib
import functools
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.runtime.server import turns
from plimsoll.runtime.server.connection import PIPELINED
from plimsoll.runtime.server.turns import Turns
from tests.support.doors import doors, get, post
from tests.support.endpoint import eventually

MIB = 1 << 20


@given(at_once=st.integers(1, 5), bursts=st.lists(st.integers(0, 20), max_size=4))
def test_everything_runs_once_in_order_of_arrival_and_so_many_in_a_turn(at_once: int, bursts: list[int]) -> None:
    ran: list[tuple[int, int]] = []

    async def ask() -> None:
        given, done, iteration, asked = Turns(at_once), sum(bursts), 0, 0

        def note(number: int) -> None:
            ran.append((number, iteration))

        for burst in [*bursts, 0]:
            for _ in range(burst):
                given.take(functools.partial(note, asked))
                asked += 1
            iteration += 1
            await asyncio.sleep(0)
        while len(ran) < done:
            iteration += 1
            await asyncio.sleep(0)

    asyncio.run(ask())
    assert [number for number, _ in ran] == list(range(sum(bursts)))
    iterations = [iteration for _, iteration in ran]
    assert all(iterations.count(one) <= at_once for one in iterations)


def test_a_probe_is_answered_before_a_queue_of_requests() -> None:
    order: list[str] = []
    blocked, free = threading.Event(), threading.Event()

    async def note(scope, receive, send) -> None:
        order.append(scope["path"])
        if scope["path"] == "/block":
            blocked.set()
            free.wait(30)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    with doors(note) as server, contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(server.connect()) for _ in range(102)]
        eventually(lambda: len(server.connections) == 102)
        waiting[0].sendall(get("/block"))
        assert blocked.wait(30)
        # The loop stands still: all of these lie ready when it goes on.
        for number, one in enumerate(waiting[1:101]):
            one.sendall(get(f"/{number}"))
        waiting[101].sendall(get("/health"))
        free.set()
        for one in waiting:
            assert b" 200 " in one.recv(4096)
    assert len(order) == 102
    assert order.index("/health") < 20


def test_requests_sent_ahead_are_answered_but_not_without_end() -> None:
    ahead = get().replace(b"Connection: close\r\n", b"")
    with doors() as server:
        assert server.ask(ahead * PIPELINED, get()).count(b"HTTP/1.1 200 ") == PIPELINED + 1
        assert server.ask(ahead * 5_000).count(b"HTTP/1.1 200 ") <= PIPELINED + 1


@pytest.mark.parametrize("answered_first", [False, True])
def test_a_large_body_is_read_a_part_a_turn(answered_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hasty(scope, receive, send) -> None:
        more = not answered_first
        while more:
            more = (await receive())["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    def hear(client: socket.socket) -> None:
        assert b" 200 " in client.recv(4096)

    monkeypatch.setattr(turns, "PAUSE", 0.05)
    with doors(hasty, max_body_bytes=2 * MIB) as server:
        body = post(b"", f"Content-Length: {2 * MIB}") + bytes(2 * MIB)
        with server.connect() as client:
            began = time.monotonic()
            client.sendall(body)
            client.sendall(get())
            hear(client)
            if answered_first:
                hear(client)
        # Eight parts of 256 KiB at most.
        assert time.monotonic() - began >= 0.05 * 6
