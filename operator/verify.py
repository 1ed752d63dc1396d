"""Whether the watches tell the truth: what the cache holds against a listing.

A watch never tells of what was deleted while it was down, and one whose connection is dead tells nothing at all.
"""

import threading
import time
from collections.abc import Callable, Sequence

import structlog

from plimsoll.operator.cluster import Cluster, ClusterError, GoneError, NotFoundError
from plimsoll.operator.kinds import Kind
from plimsoll.operator.metrics import Metrics
from plimsoll.operator.observe import Cache

log = structlog.get_logger("plimsoll.operator.verify")

EVERY_SECONDS = 600.0
#: A page of a listing has gone through the handlers after so long.
_SETTLED_SECONDS = 2.0
#: What a watch may lag behind before it counts as having missed something.
_LAG_SECONDS = 5.0

Listed = dict[tuple[str, str], tuple[str, str]]
"""(namespace, name) to (uid, resourceVersion)."""


class Verifier:
    """Lists names and versions, drops what is gone, brings what was missed, and says how much that was."""

    def __init__(
        self, cluster: Cluster, cache: Cache, namespaces: Sequence[str], metrics: Metrics,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self._cluster, self._cache, self._metrics, self._sleep = cluster, cache, metrics, sleep
        self._namespaces: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self.missed: dict[str, int] = {}
        """Checks in a row at which a kind's watch had missed something."""
        self._checked: dict[str, float] = {}

    def fill(self, kind: Kind) -> int:
        """Brings every object of a kind into the cache. Returns how many there are."""
        count = 0
        for namespace in self._where(kind):
            for page in self._cluster.pages(kind, namespace, selector=kind.selector):
                for raw in page:
                    raw.setdefault("kind", kind.name)
                    raw.setdefault("apiVersion", kind.api_version)
                    self._cache.seen(kind, None, raw, ours=True)
                    count += 1
        self._checked[kind.name] = time.monotonic()
        return count

    def due(self, kind: Kind, now: float) -> bool:
        checked = self._checked.get(kind.name, 0.0)
        relisted = self._cache.relisted.get(kind.name, 0.0)
        return now - checked > EVERY_SECONDS or (relisted > checked and now - relisted > _SETTLED_SECONDS)

    def check(self, kind: Kind) -> int:
        """Puts the cache right about one kind. Returns how many objects the watch had missed.

        Raises:
            ClusterError: the API server did not answer all that was asked; the check is due still.
        """
        began = time.monotonic()
        relisted = self._cache.relisted.get(kind.name, 0.0) > self._checked.get(kind.name, 0.0)
        listed = self._list(kind)
        if relisted:
            # That a new list tells nothing of what has gone is no fault of the watch, and what has gone is not waited
            # for: children of a deployment that is no more would be made again and again.
            for which in self._gone(kind, listed, began):
                if self._repair(kind, *which):
                    log.info("gone while nobody watched", kind=kind.name, namespace=which[0], name=which[1])
        suspects = self._suspects(kind, listed, began)
        if suspects:
            # Most often the watch is only a moment behind.
            self._sleep(_LAG_SECONDS)
            suspects &= self._suspects(kind, listed, began)
        missed = sum(self._repair(kind, *which) for which in suspects)
        if missed:
            self._metrics.watch_stale.labels(kind.name).inc(missed)
            self.missed[kind.name] = self.missed.get(kind.name, 0) + 1
            log.warning("a watch had missed changes", kind=kind.name, objects=missed)
        else:
            self.missed.pop(kind.name, None)
        # Only now: one that broke off in the middle is due still.
        self._checked[kind.name] = began
        return missed

    def _where(self, kind: Kind) -> tuple[str | None, ...]:
        return self._namespaces if kind.namespaced else (None,)

    def _list(self, kind: Kind) -> Listed:
        try:
            return self._once(kind)
        except GoneError:
            return self._once(kind)

    def _once(self, kind: Kind) -> Listed:
        listed: Listed = {}
        for namespace in self._where(kind):
            pages = self._cluster.pages(kind, namespace, selector=kind.selector, metadata_only=True, limit=1000)
            for page in pages:
                for raw in page:
                    about = raw["metadata"]
                    listed[about.get("namespace") or "", about["name"]] = (about["uid"], about["resourceVersion"])
        return listed

    def _gone(self, kind: Kind, listed: Listed, began: float) -> set[tuple[str, str]]:
        known = self._cache.listed(kind).items()
        return {which for which, (uid, _, seen) in known if seen < began and listed.get(which, ("",))[0] != uid}

    def _suspects(self, kind: Kind, listed: Listed, began: float) -> set[tuple[str, str]]:
        known = self._cache.listed(kind)
        wrong = self._gone(kind, listed, began)
        for which, (uid, version) in listed.items():
            have = known.get(which)
            if have is None or (have[2] < began and (have[0] != uid or _newer(version, have[1]))):
                wrong.add(which)
        return wrong

    def _repair(self, kind: Kind, namespace: str, name: str) -> bool:
        """Reads one object itself. False: the watch was right after all."""
        try:
            raw = self._cluster.get(kind, namespace or None, name)
        except NotFoundError:
            uid = self._cache.uid(kind, namespace, name)
            gone = {"metadata": {"namespace": namespace, "name": name, "uid": uid}}
            return uid is not None and self._cache.seen(kind, "DELETED", gone)
        wanted = kind.selector.split("=") if kind.selector else None
        if wanted and (raw["metadata"].get("labels") or {}).get(wanted[0]) != wanted[1]:
            # It lost the label that made it ours.
            return self._cache.seen(kind, "DELETED", raw)
        return self._cache.seen(kind, None, raw, ours=True)


class Rounds:
    """The thread that checks each kind when its time comes."""

    def __init__(
        self, verifier: Verifier, watched: Callable[[], Sequence[Kind]], alarm: Callable[[Kind], None]
    ) -> None:
        self._verifier, self._watched, self._alarm = verifier, watched, alarm
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="verify", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            # The first that is due, and then anew: what all others belong to comes first, and a check may take long.
            while (kind := self._due()) is not None and not self._stop.is_set():
                try:
                    if self._verifier.check(kind):
                        self._alarm(kind)
                except ClusterError as error:
                    log.warning("a kind could not be checked", kind=kind.name, error=str(error))
                    break
                except Exception:
                    log.exception("this is a bug", kind=kind.name)
                    break

    def _due(self) -> Kind | None:
        now = time.monotonic()
        return next((kind for kind in self._watched() if self._verifier.due(kind, now)), None)


def _newer(version: str, known: str) -> bool:
    if version.isdecimal() and known.isdecimal():
        return int(version) > int(known)
    return version != known
