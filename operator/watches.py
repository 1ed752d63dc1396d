"""The watches of all kinds, in one thread with an event loop of its own: what fails there harms no other part."""

import asyncio
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import aiohttp
import structlog
from kubernetes.client import Configuration

from plimsoll import __version__
from plimsoll.operator.cluster import credentials
from plimsoll.operator.kinds import Kind
from plimsoll.operator.pulse import Pulse
from plimsoll.operator.reflector import Reflector
from plimsoll.operator.watch_cache import Cache

log = structlog.get_logger("plimsoll.operator.watch")

#: The thread looks at its watches twice a second.
STUCK_SECONDS = 120.0


class Watches:
    """One reflector for each kind and namespace, kept alive from a thread.

    Args:
        namespaces: none means all of the cluster.
        heard: takes each event; None gives it to the cache.
    """

    def __init__(
        self, configuration: Configuration, cache: Cache, namespaces: Sequence[str],
        heard: Callable[[Kind, str | None, dict[str, Any]], object] | None = None,
    ) -> None:  # fmt: skip
        self.heard = heard or cache.seen
        self._configuration, self._cache, self._namespaces = configuration, cache, tuple(namespaces)
        self.kinds: tuple[Kind, ...] = ()
        self.opened: dict[str, float] = {}
        """Monotonic time at which the API server last agreed to a watch, by kind."""
        self.refused: Callable[[str], None] = lambda namespace: None
        """Called with a namespace in which something may not be listed or watched."""
        self.denied: set[str] = set()
        """Kinds that may not be watched, or that the API server says it does not have."""
        self._stop = threading.Event()
        self._restart = threading.Event()
        self._live: dict[str, set[str | None]] = {}
        """Namespaces in which each kind is being watched."""
        self._missing_since: dict[str, float] = {}
        """Since when each kind has had no watch, through all attempts to begin one."""
        self.pulse = Pulse("watches", self._run, STUCK_SECONDS)

    def start(self, watched: Sequence[Kind]) -> None:
        """Watch these kinds, in a thread of its own."""
        self.kinds = tuple(watched)
        self._miss()
        self.pulse.start()

    def restart(self, watched: Sequence[Kind] | None = None) -> None:
        """Lists and watches everything again, or other kinds."""
        if watched is not None:
            self.kinds = tuple(watched)
            self._miss()
        self._restart.set()

    def stop(self) -> None:
        self._stop.set()
        self._restart.set()

    def join(self, seconds: float) -> None:
        """Wait at most `seconds` for the thread to end."""
        self.pulse.join(seconds)

    def ages(self) -> dict[str, float]:
        """Seconds since each kind's watch was last begun."""
        now, opened = time.monotonic(), dict(self.opened)
        return {kind.name: now - opened[kind.name] for kind in self.kinds if kind.name in opened}

    def missing(self) -> dict[str, float]:
        """Seconds for which each kind that is to be watched has had no watch; kinds that have one are left out."""
        now, since = time.monotonic(), dict(self._missing_since)
        return {kind.name: now - since[kind.name] for kind in self.kinds if kind.name in since}

    def _miss(self) -> None:
        """Notes which kinds have no watch from now on; of others it is known since when."""
        now, wanted = time.monotonic(), {kind.name for kind in self.kinds}
        lacking = [name for name in wanted if name not in self.opened]
        self._missing_since = {name: self._missing_since.get(name, now) for name in lacking}

    def open(self) -> bool:
        """Whether every kind has been listed and is watched."""
        return bool(self.kinds) and all(kind.name in self.opened for kind in self.kinds)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._restart.clear()
            try:
                self._once()
            except Exception:
                log.exception("this is a bug")
                self._stop.wait(1.0)

    def _once(self) -> None:
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(self._watch())
        finally:
            loop.close()

    async def _watch(self) -> None:
        """Runs the reflectors until `restart` or `stop` is called."""
        self.opened.clear()
        self._live.clear()
        self._miss()
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=tls(self._configuration)),
            headers={"User-Agent": f"plimsoll-operator/{__version__}"},
        ) as session:
            tasks = [asyncio.ensure_future(one.run()) for one in self.reflectors(session)]
            while not self._restart.is_set():
                await asyncio.sleep(0.5)
                self.pulse.beat()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def reflectors(self, session: aiohttp.ClientSession) -> list[Reflector]:
        """A reflector for each watched kind and namespace."""
        everywhere: tuple[str | None, ...] = (None,)
        headers = partial(credentials, self._configuration)
        return [
            Reflector(session, self._configuration.host, kind, namespace, headers, self)
            for kind in self.kinds
            for namespace in (self._namespaces if kind.namespaced and self._namespaces else everywhere)
        ]

    def answered(self, kind: Kind, namespace: str | None, status: int, *, watching: bool) -> None:
        """Notes which listings and watches the API server has agreed to."""
        if status == 403 and namespace is not None:
            self.refused(namespace)
        (self.denied.add if status in (403, 404) else self.denied.discard)(kind.name)
        if status == 200 and watching:
            self._live.setdefault(kind.name, set()).add(namespace)
            self.opened[kind.name] = time.monotonic()
            self._missing_since.pop(kind.name, None)
        elif status == 200:
            self._cache.relisted[kind.name] = time.monotonic()

    def failed(self, kind: Kind, namespace: str | None, error: str) -> None:
        """Notes that a kind has no watch now, unless another namespace's goes on."""
        live = self._live.setdefault(kind.name, set())
        live.discard(namespace)
        if not live:
            self.opened.pop(kind.name, None)
            self._missing_since.setdefault(kind.name, time.monotonic())
        if namespace is None or namespace not in self._cache.lost:
            log.warning("will watch again", kind=kind.name, namespace=namespace or "", error=error)


def tls(configuration: Configuration) -> ssl.SSLContext | bool:
    """As the `kubernetes` package would connect."""
    if not configuration.host.startswith("https"):
        return False
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
