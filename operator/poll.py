"""Reads the status pages of pods and wakes the deployments and jobs whose page has something new to say."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
import structlog

from plimsoll.api.job_progress import JobProgress
from plimsoll.operator import parse_jobs
from plimsoll.operator.entries import Key, Target
from plimsoll.operator.metrics import Metrics
from plimsoll.operator.names import STATUS_PORT
from plimsoll.operator.parse_page import page_of
from plimsoll.operator.snapshot import Page
from plimsoll.operator.watch_cache import Cache

log = structlog.get_logger("plimsoll.operator.poll")

STARTING_SECONDS = 2.0
#: A status is written this often at most while a job goes on.
JOB_SECONDS = 5.0
SERVING_SECONDS = 15.0
#: A pod without requests says the same for long.
QUIET_SECONDS = 60.0
UNREACHABLE_SECONDS = 300.0
TIMEOUT_SECONDS = 2.0
#: So many failures in a row, and what the page said last counts no more.
GIVE_UP = 4
AT_ONCE = 128
_LONGEST = 64 * 1024

Said = Page | JobProgress
Reader = Callable[[str], Awaitable[Any]]


@dataclass
class _Pod:
    next_at: float = 0.0
    wait: float = 0.0
    failures: int = 0
    was_ready: bool = False
    running: bool = False


class Poller:
    """Keeps every page as fresh as its pod's state asks for.

    Args:
        wake: takes each deployment whose status may have to change.
        leading: pages are read only by the operator that writes.
        read: the page behind a pod's address, decoded; tests give their own.
    """

    def __init__(
        self, cache: Cache, wake: Callable[[Key], None], leading: Callable[[], bool], metrics: Metrics,
        read: Reader | None = None,
    ) -> None:  # fmt: skip
        self._cache, self._wake, self._leading, self._metrics = cache, wake, leading, metrics
        self._read = read
        self._pods: dict[str, _Pod] = {}
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until cancelled."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        connector = aiohttp.TCPConnector(limit=AT_ONCE, force_close=True)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session:
            self._read = self._read or _over_http(session)
            while True:
                try:
                    self.tick(time.monotonic())
                except Exception:
                    log.exception("this is a bug")
                await asyncio.sleep(0.5)

    def tick(self, now: float) -> None:
        """Begins to read every page that is due."""
        targets = self._cache.targets() if self._leading() else []
        alive = {target.uid for target in targets}
        for uid in self._pods.keys() - alive:
            del self._pods[uid]
        for target in targets:
            pod = self._pods.setdefault(target.uid, _Pod())
            if target.ready != pod.was_ready:
                # What it was waiting for has happened.
                pod.was_ready, pod.next_at, pod.wait = target.ready, now, 0.0
            if pod.next_at <= now and not pod.running:
                pod.running = True
                task = asyncio.ensure_future(self._poll(target, pod))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _poll(self, target: Target, pod: _Pod) -> None:
        assert self._read is not None
        before = self._cache.page(target.uid)
        try:
            async with self._gate:
                data = await self._read(target.ip)
            page = _page(target, data, before)
        except Exception as error:
            # A pod may answer anything, and its address may lead anywhere: such an answer counts as none.
            log.debug("a status page cannot be read", address=target.ip, error=repr(error)[:200])
            page = None
        finally:
            pod.running = False
        self._metrics.polls.labels("read" if page else "unreachable").inc()
        if page is None:
            self._failed(target, pod, before)
        else:
            self._succeeded(target, pod, before, page)

    def _failed(self, target: Target, pod: _Pod, before: Said | None) -> None:
        pod.failures += 1
        pod.wait = min(max(pod.wait, STARTING_SECONDS) * (1.0 if pod.failures < GIVE_UP else 2.0), UNREACHABLE_SECONDS)
        if not target.ready:
            # It starts: its page may open at any moment.
            pod.wait = min(pod.wait, SERVING_SECONDS)
        self._later(pod)
        if self._cache.asked(target.uid, known=pod.failures >= GIVE_UP) and target.ready:
            self._wake(target.key)
        # One that starts may be too busy to answer; that it moved once still counts, or its deadline would be over.
        if pod.failures >= GIVE_UP and before is not None and target.ready:
            self._cache.set_page(target.uid, None)
            self._wake(target.key)

    def _succeeded(self, target: Target, pod: _Pod, before: Said | None, page: Said) -> None:
        pod.failures = 0
        told = before is None or _telling(page) != _telling(before)
        if isinstance(page, JobProgress):
            pod.wait = JOB_SECONDS
        elif not target.ready or page.phase != "ready":
            pod.wait = STARTING_SECONDS
        elif told or page.running or page.waiting:
            pod.wait = SERVING_SECONDS
        else:
            pod.wait = min(max(pod.wait, SERVING_SECONDS) * 1.5, QUIET_SECONDS)
        self._later(pod)
        self._cache.set_page(target.uid, page)
        news = self._cache.asked(target.uid)
        if told or news:
            self._wake(target.key)

    @staticmethod
    def _later(pod: _Pod) -> None:
        # Spread out, or a thousand pods that came together are asked together for ever.
        pod.next_at = time.monotonic() + pod.wait * random.uniform(0.9, 1.1)


def _page(target: Target, data: Any, before: Said | None) -> Said | None:
    """A job's progress, or what a container says that fetches or serves."""
    if target.quantizes and (found := parse_jobs.progress(data)) is not None:
        return found
    return page_of(data, time.time(), before if isinstance(before, Page) else None)


def _telling(page: Said) -> tuple[Any, ...]:
    """What a status can show of a page."""
    if isinstance(page, JobProgress):
        eta = None if page.eta_seconds is None else round(page.eta_seconds / 10)
        return page.phase, page.layer, int(page.percent), eta, page.message
    startup = tuple(sorted((name, *sorted(step.items())) for name, step in page.startup.items()))
    usage = round(page.cache_usage * 20)
    measured = tuple(tuple(sorted(terms.items())) for terms in (page.observed, *page.ranks))
    loads = tuple(tuple(sorted(one.items())) for one in page.rank_loads)
    computes = tuple(sorted(page.serving.items()))
    return page.phase, page.waiting_for, startup, loads, measured, computes, page.running, page.waiting, usage


def _over_http(session: aiohttp.ClientSession) -> Reader:
    async def read(ip: str) -> Any:
        host = f"[{ip}]" if ":" in ip else ip
        async with session.get(f"http://{host}:{STATUS_PORT}/status", allow_redirects=False) as answer:
            if answer.status != 200:
                raise ValueError(f"answered {answer.status}")
            body = await answer.content.read(_LONGEST + 1)
            while len(body) <= _LONGEST and (more := await answer.content.read(_LONGEST)):
                body += more
        if len(body) > _LONGEST:
            raise ValueError("too long for a status page")
        return msgspec.json.decode(body)

    return read
