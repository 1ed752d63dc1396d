"""Status pages: read as often as their pod's state asks for, told when they say something new."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from plimsoll.operator import kinds, names
from plimsoll.operator.metrics import Metrics
from plimsoll.operator.poll import GIVE_UP, Poller
from plimsoll.operator.watch_cache import Cache

Make = Callable[..., dict[str, Any]]
LOADING = {"phase": "loading", "startup": {"load": {"bytes": 1, "total": 9}}}
READY = {"phase": "ready", "observed": {"peak": 7}, "running": 0}


class Pods:
    """What stands behind pods' addresses, and who asked when."""

    def __init__(self, cache: Cache, make: Make) -> None:
        self.cache, self.make, self.pages = cache, make, dict[str, Any]()
        self.reads: list[str] = []
        self.woken: list[tuple[str, str]] = []
        self.leading = True
        self.poller = Poller(cache, self.woken.append, lambda: self.leading, Metrics(), self.read)
        self.versions = 0

    def pod(self, name: str, ip: str, ready: bool = False, **about: Any) -> None:
        self.versions += 1
        meta = {"labels": {names.DEPLOYMENT: "a", names.COMPONENT: "server"}, **about}
        conditions = [{"type": "Ready", "status": str(ready)}]
        status = {"phase": "Running", "podIP": ip, "conditions": conditions}
        self.cache.seen(kinds.POD, "MODIFIED", self.make(kinds.POD, name, self.versions, metadata=meta, status=status))

    async def read(self, ip: str) -> Any:
        self.reads.append(ip)
        found = self.pages.get(ip)
        if found is None:
            raise aiohttp.ClientConnectionError("nobody there")
        return found

    async def tick(self, now: float) -> None:
        self.poller.tick(now)
        while self.poller._tasks:
            await asyncio.gather(*self.poller._tasks)


@pytest.fixture
def pods(cache: Cache, make: Make) -> Pods:
    return Pods(cache, make)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]


FAR = 1e12


def test_a_new_page_wakes_its_deployment_and_the_same_page_does_not(pods: Pods) -> None:
    async def scenario() -> None:
        pods.pod("p", "10.0.0.1")
        pods.pages["10.0.0.1"] = LOADING
        await pods.tick(FAR)
        assert pods.woken == [("ns", "a")]
        await pods.tick(FAR)
        assert pods.woken == [("ns", "a")]
        pods.pages["10.0.0.1"] = {**LOADING, "startup": {"load": {"bytes": 5, "total": 9}}}
        await pods.tick(FAR)
        assert pods.woken == [("ns", "a")] * 2
        assert pods.reads == ["10.0.0.1"] * 3

    run(scenario)


def test_a_page_is_not_read_before_its_time(pods: Pods) -> None:
    async def scenario() -> None:
        pods.pod("p", "10.0.0.1", ready=True)
        pods.pages["10.0.0.1"] = READY
        await pods.tick(FAR)
        await pods.tick(0.0)
        assert len(pods.reads) == 1

    run(scenario)


def test_waits_follow_the_pods_state(pods: Pods) -> None:
    async def scenario() -> None:
        pods.pod("p", "10.0.0.1")
        pods.pages["10.0.0.1"] = LOADING
        await pods.tick(FAR)
        state = next(iter(pods.poller._pods.values()))
        assert state.wait == 2.0
        pods.pod("p", "10.0.0.1", ready=True)
        pods.pages["10.0.0.1"] = {**READY, "running": 3}
        await pods.tick(FAR)
        await pods.tick(FAR)
        assert state.wait == 15.0
        pods.pages["10.0.0.1"] = READY
        for _ in range(9):
            await pods.tick(FAR)
        assert state.wait == 60.0

    run(scenario)


def test_one_that_answers_no_more_is_asked_ever_less_and_its_page_forgotten(pods: Pods, cache: Cache) -> None:
    async def scenario() -> None:
        pods.pod("p", "10.0.0.1", ready=True)
        pods.pages["10.0.0.1"] = READY
        await pods.tick(FAR)
        uid = cache.targets()[0].uid
        del pods.pages["10.0.0.1"]
        pods.woken.clear()
        for _ in range(GIVE_UP - 1):
            await pods.tick(FAR)
        assert cache.page(uid) is not None
        assert pods.woken == []
        for _ in range(20):
            await pods.tick(FAR)
        assert cache.page(uid) is None
        assert pods.woken == [("ns", "a")]
        assert pods.poller._pods[uid].wait == 300.0

    run(scenario)


def test_nobody_but_the_leader_reads(pods: Pods) -> None:
    async def scenario() -> None:
        pods.leading = False
        pods.pod("p", "10.0.0.1")
        await pods.tick(FAR)
        assert pods.reads == []

    run(scenario)


def test_pods_that_leave_are_not_read(pods: Pods) -> None:
    async def scenario() -> None:
        pods.pod("p", "10.0.0.1")
        await pods.tick(FAR)
        pods.pod("p", "10.0.0.1", deletionTimestamp="2026-01-01T00:00:00Z")
        await pods.tick(FAR)
        assert len(pods.reads) == 1
        assert pods.poller._pods == {}

    run(scenario)


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
     b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n<ht>",
     b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 70_000, b"SSH-2.0\r\n", b""],
    ids=["elsewhere", "error", "no JSON", "too long", "no HTTP", "nothing"],
)  # fmt: skip
def test_an_odd_answer_is_no_page(cache: Cache, make: Make, monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    async def scenario() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        monkeypatch.setattr("plimsoll.operator.poll.STATUS_PORT", server.sockets[0].getsockname()[1])
        told: list[Any] = []
        poller = Poller(cache, told.append, lambda: True, Metrics())
        pods = Pods(cache, make)
        pods.pod("p", "127.0.0.1")
        running = asyncio.ensure_future(poller.run())
        while not any(state.failures for state in poller._pods.values()):
            await asyncio.sleep(0.01)
        running.cancel()
        assert told == []
        server.close()

    run(scenario)


def test_a_pod_that_starts_keeps_its_page_however_busy_it_is(pods: Pods, cache: Cache) -> None:
    async def scenario() -> None:
        pods.pod("p", "10.0.0.1")
        pods.pages["10.0.0.1"] = LOADING
        await pods.tick(FAR)
        uid = cache.targets()[0].uid
        del pods.pages["10.0.0.1"]
        for _ in range(20):
            await pods.tick(FAR)
        assert cache.page(uid) is not None
        assert pods.poller._pods[uid].wait == 15.0

    run(scenario)
