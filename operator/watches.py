"""kopf lists and watches, the cache listens. No logic in handlers, no annotations, no finalizers, nothing written.

kopf runs in an event loop and a thread of its own: what fails there is started again, and the rest goes on meanwhile
from what it knows.
"""

import asyncio
import random
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any

import aiohttp
import kopf
import structlog
from kubernetes.client import Configuration

from plimsoll.operator.answers import soften
from plimsoll.operator.cluster import credentials
from plimsoll.operator.kinds import Kind
from plimsoll.operator.pulse import Pulse
from plimsoll.operator.stream import Stream
from plimsoll.operator.watch_cache import Cache

log = structlog.get_logger("plimsoll.operator.watch")

#: The API server ends a watch after so long, and kopf begins another: the age of a watch that lives is bounded.
WATCH_SECONDS = 240
#: Bookmarks come every minute; without a sign for so long a connection is dead.
SILENT_SECONDS = 150
#: Watches that lived so long had begun well, and are begun anew at once; others after ever longer pauses.
LIVED_SECONDS = 10.0
#: A watch begins once its kind is listed; without a page of a list for so long it will not begin.
OPEN_SECONDS = 30.0
#: The thread looks at its watches twice a second.
STUCK_SECONDS = 120.0


class Backoffs:
    """Seconds between attempts, for ever: an API server that is away for an hour is no reason to end."""

    def __iter__(self) -> Iterator[float]:
        wait = 0.5
        while True:
            yield wait * random.uniform(0.75, 1.25)
            wait = min(wait * 2, 15.0)


class _NoDifferences(kopf.DiffBaseStorage):
    """For handlers of differences kopf copies each object and takes it apart, at every event: here there are none."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Nothing is kept in the objects."""


class Watches:
    """One watch for each kind and namespace, kept alive from a thread.

    Args:
        namespaces: none means all of the cluster.
        heard: takes each event; None gives it to the cache.
    """

    def __init__(
        self, configuration: Configuration, cache: Cache, namespaces: Sequence[str],
        heard: Callable[[Kind, str | None, dict[str, Any]], object] | None = None,
    ) -> None:  # fmt: skip
        self._heard = heard or cache.seen
        self._configuration, self._cache, self._namespaces = configuration, cache, tuple(namespaces)
        self.kinds: tuple[Kind, ...] = ()
        self.opened: dict[str, float] = {}
        """Monotonic time at which the API server last agreed to a watch, by kind."""
        self.refused: Callable[[str], None] = lambda namespace: None
        """Called with a namespace in which something may not be listed or watched."""
        self.denied: set[str] = set()
        """Kinds that may not be watched, or that the API server says it does not have."""
        self._began = 0.0
        self._stop = threading.Event()
        self._restart = threading.Event()
        self._down = threading.Event()
        self._missing_since: dict[str, float] = {}
        """Since when each kind has had no watch, through all attempts to begin one."""
        self.pulse = Pulse("watches", self._run, STUCK_SECONDS)

    def start(self, watched: Sequence[Kind]) -> None:
        self.kinds = tuple(watched)
        self._miss()
        self.pulse.start()

    def restart(self, watched: Sequence[Kind] | None = None) -> None:
        """Lists and watches everything anew, or other kinds."""
        if watched is not None:
            self.kinds = tuple(watched)
            self._miss()
        self._restart.set()

    def stop(self) -> None:
        self._stop.set()
        self._restart.set()

    def join(self, seconds: float) -> None:
        self.pulse.join(seconds)

    def ages(self) -> dict[str, float]:
        """Seconds since each kind's watch was last begun."""
        now = time.monotonic()
        return {kind.name: now - self.opened[kind.name] for kind in self.kinds if kind.name in self.opened}

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
        pause = 1.0
        while not self._stop.is_set():
            self._restart.clear()
            began = time.monotonic()
            try:
                why = self._once()
            except Exception as error:
                # An API server that answers nonsense, a kind that is gone: list and watch anew.
                why = f"{type(error).__name__}: {error}"[:300]
            pause = 1.0 if time.monotonic() - began > LIVED_SECONDS else min(pause * 2, 15.0)
            if not self._stop.is_set():
                log.warning("watches begin anew", because=why)
                self._stop.wait(0.1 if self._restart.is_set() else pause)

    def _once(self) -> str:
        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(self._watch())
        finally:
            _dismantle(loop)

    async def _watch(self) -> str:
        """Until told otherwise, or until something is wrong with it. Returns why."""
        stop = asyncio.Event()
        self._down.clear()
        self.opened.clear()
        self._miss()
        self._began = time.monotonic()
        watching = asyncio.ensure_future(
            kopf.operator(
                registry=self._registry(),
                settings=self._settings(),
                standalone=True,
                clusterwide=not self._namespaces,
                namespaces=list(self._namespaces),
                stop_flag=stop,
            )
        )
        why = ""
        while not why and not watching.done():
            await asyncio.wait([watching], timeout=0.5)
            self.pulse.beat()
            why = self._wrong()
        # One failed watch ends kopf, and on its way out kopf may wait for ever for the others: they are left behind.
        stop.set()
        await asyncio.wait([watching], timeout=2.0)
        if watching.done():
            watching.result()
        return why or "kopf ended"

    def _wrong(self) -> str:
        if self._restart.is_set():
            return "it was asked for"
        if self._down.is_set():
            return "a watch failed"
        old = [name for name, age in self.ages().items() if age > WATCH_SECONDS + SILENT_SECONDS + 30]
        if old:
            return f"the watch of {old[0]} is not renewed"
        now, listed = time.monotonic(), self._cache.relisted
        shut = [name for name in self.missing() if now - max(self._began, listed.get(name, 0.0)) > OPEN_SECONDS]
        return f"the watch of {shut[0]} does not open" if shut else ""

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        for kind in self.kinds:
            kopf.on.event(kind.group, kind.version, kind.plural, registry=registry, id=kind.plural)(self._handler(kind))
        kopf.on.login(registry=registry)(self._login)
        kopf.on.cleanup(registry=registry)(self._ended)
        return registry

    def _handler(self, kind: Kind) -> Callable[..., Awaitable[None]]:
        async def seen(event: Any, **_: Any) -> None:
            # Of changes the stream has told already, on their way here.
            if event["type"] is None:
                self._heard(kind, None, event["object"])

        return seen

    async def _ended(self, **_: Any) -> None:
        self._down.set()

    async def _login(self, **_: Any) -> kopf.AiohttpSession:
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=tls(self._configuration)), middlewares=(self._request,)
        )
        return kopf.AiohttpSession(server=self._configuration.host, aiohttp_session=session)

    async def _request(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Renews the token, and notes which listings and watches the API server has agreed to."""
        request.headers.update(credentials(self._configuration))
        response = await handler(request)
        agreed = response.status == 200
        await soften(response)
        parts = request.url.path.strip("/").split("/")
        plural = parts[-1]
        if response.status == 403 and parts[-3:-2] == ["namespaces"]:
            self.refused(parts[-2])
        for kind in self.kinds:
            if kind.plural != plural:
                continue
            (self.denied.add if response.status in (403, 404) else self.denied.discard)(kind.name)
            if agreed and request.url.query.get("watch") == "true":
                self.opened[kind.name] = time.monotonic()
                self._missing_since.pop(kind.name, None)
                response.content = Stream(response.content, partial(self._heard, kind))  # type: ignore[assignment]
            elif agreed:
                self._cache.relisted[kind.name] = time.monotonic()
        return response

    def _settings(self) -> kopf.OperatorSettings:
        settings = kopf.OperatorSettings()
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.peering.standalone = True
        settings.watching.server_timeout = WATCH_SECONDS
        settings.watching.inactivity_timeout = SILENT_SECONDS
        settings.watching.connect_timeout = 10.0
        settings.watching.chunk_size = 250
        settings.networking.request_timeout = 30.0
        settings.networking.connect_timeout = 10.0
        settings.networking.error_backoffs = Backoffs()
        # A task per object for the time of an event, not for seconds after it.
        settings.queueing.idle_timeout = 0.5
        settings.queueing.exit_timeout = 0.5
        settings.process.ultimate_exiting_timeout = None
        settings.persistence.diffbase_storage = _NoDifferences()
        for kind in self.kinds:
            if kind.selector:
                settings.watching.label_selectors[kopf_selector(kind)] = kind.selector
        return settings


def _dismantle(loop: asyncio.AbstractEventLoop) -> None:
    """Ends what is left in the loop, without waiting for what does not want to end."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    try:
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=1.0))
    finally:
        loop.close()


def kopf_selector(kind: Kind) -> tuple[str, str, str]:
    return kind.group, kind.version, kind.plural


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
