"""A pod leaves its Service while clients go on asking: nobody is refused, cut off or reset."""

import asyncio
import contextlib
import json
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from plimsoll.runtime.server.drain import Gate
from tests.support.balancer import Balancer
from tests.support.endpoint import eventually
from tests.support.pod_process import PodProcess, manifest, pod_process

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
LAG_SECONDS = 1.0
"""How long the balancer goes on sending new connections to a pod that leaves: kube-proxy hears of it late."""


@pytest.fixture(scope="module")
def staying(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodProcess]:
    """The pod that takes over."""
    with pod_process(tmp_path_factory.mktemp("staying"), manifest(tiny_checkpoint)) as pod:
        yield pod.ready()


@pytest.fixture
def leaving(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[PodProcess]:
    with pod_process(tmp_path / "leaving", manifest(tiny_checkpoint)) as pod:
        yield pod.ready()


class Traffic:
    """Clients of every kind, each asking again as soon as it has its answer; every failure is kept."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers = 0
        self.failures: list[str] = []
        self.over = False

    async def _forever(self, name: str, ask: Callable[[], Awaitable[None]]) -> None:
        while not self.over:
            try:
                await ask()
                self.answers += 1
            except Exception as error:
                self.failures.append(f"{name}: {type(error).__name__}: {error}")
                return

    async def run(self) -> None:
        limits = httpx.Limits(keepalive_expiry=60)
        async with contextlib.AsyncExitStack() as stack:
            workers = []
            for number in range(3):
                client = await stack.enter_async_context(httpx.AsyncClient(timeout=60, limits=limits))
                workers.append(self._forever(f"kept {number}", lambda client=client: self._short(client)))
                client = await stack.enter_async_context(httpx.AsyncClient(timeout=60, limits=limits))
                workers.append(self._forever(f"stream {number}", lambda client=client: self._stream(client)))
            workers += [self._forever("new connections", self._new) for _ in range(2)]
            official = await stack.enter_async_context(
                openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0, timeout=60)
            )
            workers.append(self._forever("openai", lambda: self._official(official)))
            await asyncio.gather(*workers)

    async def _short(self, client: httpx.AsyncClient) -> None:
        answer = await client.post(f"{self.url}/v1/chat/completions", json=CHAT | {"max_tokens": 3})
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"]

    async def _new(self) -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            await self._short(client)

    async def _stream(self, client: httpx.AsyncClient) -> None:
        body = CHAT | {"max_tokens": 60, "ignore_eos": True, "stream": True}
        async with client.stream("POST", f"{self.url}/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200
            events = [line.removeprefix("data: ") async for line in answer.aiter_lines() if line]
        assert events[-1] == "[DONE]"
        assert not any("error" in json.loads(event) for event in events[:-1])

    async def _official(self, client: openai.AsyncOpenAI) -> None:
        assert (await client.chat.completions.create(**CHAT, max_tokens=3)).choices


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("told", ["by preStop", "by SIGTERM alone"])
def test_nobody_fails_while_a_pod_leaves(staying: PodProcess, leaving: PodProcess, told: str) -> None:
    async def leave() -> tuple[Traffic, int]:
        async with Balancer([leaving.port, staying.port]) as balancer, httpx.AsyncClient(timeout=60) as kubelet:
            traffic = Traffic(balancer.url)
            # A connection that is idle all the while, and used again when its pod has gone.
            idle = httpx.AsyncClient(timeout=60, limits=httpx.Limits(keepalive_expiry=600))
            for _ in range(2):
                await traffic._short(idle)
            running = asyncio.create_task(traffic.run())
            await _until(lambda: traffic.answers > 20)
            loop = asyncio.get_running_loop()
            loop.call_later(LAG_SECONDS, balancer.ports.remove, leaving.port)
            if told == "by preStop":
                hook = asyncio.create_task(kubelet.get(f"{leaving.status_url}/drain?quiet=2"))
            else:
                leaving.process.terminate()
            while (await kubelet.get(f"{leaving.status_url}/ready")).status_code != 503:
                pass
            assert (await kubelet.get(f"{leaving.root}/ready")).status_code == 503
            # It still serves who comes, and takes leave of them.
            late = await kubelet.post(f"{leaving.url}/chat/completions", json=CHAT | {"max_tokens": 1})
            assert (late.status_code, late.headers["connection"]) == (200, "close")
            if told == "by preStop":
                assert (await kubelet.get(f"{leaving.status_url}/status")).json()["phase"] == "draining"
                answer = await hook
                assert (answer.status_code, answer.json()["drained"], answer.json()["inFlight"]) == (200, True, 0)
                leaving.process.terminate()
            await _until(lambda: leaving.process.poll() is not None)
            seen = traffic.answers
            await _until(lambda: traffic.answers > seen + 20 or bool(traffic.failures))
            await traffic._short(idle)
            await idle.aclose()
            traffic.over = True
            await running
            return traffic, balancer.taken[leaving.port]

    traffic, taken = asyncio.run(leave())
    assert traffic.failures == []
    assert traffic.answers > 50
    assert taken > 0
    assert leaving.wait() == 0
    assert not leaving.words.exists()


def test_after_a_drain_sigterm_waits_for_nothing(leaving: PodProcess) -> None:
    assert leaving.get("/drain?quiet=0").json()["drained"]
    assert leaving.get("/drain?quiet=3000").json()["seconds"] < 1, "who asks again waits for the same end"
    leaving.process.terminate()
    assert leaving.wait(4) == 0


def test_what_has_not_finished_when_the_time_is_up_ends_with_an_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    deployment = manifest(tiny_checkpoint, rollout={"drainTimeout": "1s"})
    with pod_process(tmp_path / "pod", deployment) as pod:
        body = CHAT | {"max_tokens": 200, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{pod.ready().url}/chat/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            os.kill(pod.engine.pid, signal.SIGSTOP)
            answer = pod.get("/drain").json()
            assert (answer["drained"], answer["inFlight"]) == (False, 1)
            pod.process.terminate()
            rest = [line.removeprefix("data: ") for line in lines if line]
        assert json.loads(rest[-2])["error"]["code"] == "not_ready"
        assert pod.wait() == 0


def test_a_drain_before_there_is_a_model_waits_for_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pod_process(tmp_path / "pod", manifest(tiny_checkpoint)) as pod:
        answer = pod.get("/drain?quiet=3000")
        assert (answer.status_code, answer.json()["drained"]) == (200, True)
        assert pod.status()["phase"] == "draining"
        assert pod.get("/ready").status_code == 503
        pod.process.terminate()
        assert pod.wait() == 0


def test_the_gate_waits_for_silence_and_no_longer_than_it_may() -> None:
    async def scenario() -> None:
        gate = Gate()
        gate.drain()
        assert not await gate.quieted(60, 0.05), "too early to call it silence, and the time is up"
        assert not gate.drained
        gate = Gate()
        gate.drain()
        waiting = asyncio.create_task(gate.quieted(0.05, 60))
        with gate.enter():
            gate.arrived()
            await asyncio.sleep(0.1)
            assert not waiting.done(), "a request is inside"
        assert await waiting
        assert gate.drained
        with gate.enter():
            again = asyncio.create_task(gate.quieted(3000, 60))
            await asyncio.sleep(0)
            assert not again.done(), "still nobody is cut off"
        assert await again

    asyncio.run(scenario())


def test_the_last_connection_is_closed_without_a_request_lost(leaving: PodProcess) -> None:
    """A client that never stops asking on one kept connection: its last answer says that there is no next one."""
    answers: list[str] = []

    def ask() -> None:
        with httpx.Client(timeout=60) as client:
            while not answers or answers[-1] != "close":
                answer = client.post(f"{leaving.url}/chat/completions", json=CHAT | {"max_tokens": 2})
                assert answer.status_code == 200
                answers.append(answer.headers.get("connection", ""))

    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: len(answers) > 3)
    leaving.process.terminate()
    asking.join(60)
    assert answers[-1] == "close"
    assert leaving.wait() == 0
