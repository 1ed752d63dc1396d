"""Whether the watches tell the truth: what the cache holds against a listing.

A watch never tells of what was deleted while it was down, and one whose connection is dead tells nothing at all.

Of several namespaces one may be deleted, and its Role with it: every list there is refused then. Where deployments may
not be listed, a namespace is lost: it counts as empty until they may be, and the others go on.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import structlog

from plimsoll.operator import parse
from plimsoll.operator.cluster import Cluster, ClusterError, ForbiddenError, NotFoundError, read_again
from plimsoll.operator.departures import Departures
from plimsoll.operator.entries import older, ordered
from plimsoll.operator.kinds import BY_NAME, DEPLOYMENT, ENDPOINT_SLICE, Kind
from plimsoll.operator.metrics import Metrics
from plimsoll.operator.names import OURS, STRAY
from plimsoll.operator.pulse import Pulse
from plimsoll.operator.watch_cache import Cache

log = structlog.get_logger("plimsoll.operator.verify")

EVERY_SECONDS = 600.0
#: The same for deployments while a namespace is lost, and how soon a check that failed is tried again.
LOST_SECONDS, RETRY_SECONDS = 60.0, 15.0
#: The cache has taken in a page of a listing after so long.
_SETTLED_SECONDS = 2.0
#: What a watch may lag behind before it counts as having missed something.
_LAG_SECONDS = 5.0
#: A check of one kind takes less, however many namespaces and objects there are.
STUCK_SECONDS = 1800.0

Listed = dict[tuple[str, str], tuple[str, str]]
"""(namespace, name) to (uid, resourceVersion)."""


class Verifier:
    """Lists names and versions, drops what is gone, brings what was missed, and says how much that was.

    Args:
        regained: called with a namespace that was lost, once all that is in it is known again.
        departures: looks after objects that have lost the label by which they would be watched.
    """

    def __init__(
        self, cluster: Cluster, cache: Cache, namespaces: Sequence[str], metrics: Metrics,
        sleep: Callable[[float], None] = time.sleep, regained: Callable[[str], None] = lambda namespace: None,
        departures: Departures | None = None,
    ) -> None:  # fmt: skip
        self._departures = departures or Departures(cluster, cache)
        self._cluster, self._cache, self._metrics, self._sleep = cluster, cache, metrics, sleep
        self._regained = regained
        self._namespaces: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self.missed: dict[str, int] = {}
        """Checks in a row at which a kind's watch had missed something."""
        self._checked: dict[str, float] = {}

    def fill(self, kind: Kind) -> int:
        """Brings every object of a kind into the cache. Returns how many there are."""
        count = self._bring(kind, self._pages(kind, limit=250))
        self._find_strays(kind)
        self._checked[kind.name] = time.monotonic()
        return count

    def _bring(self, kind: Kind, pages: Iterator[list[dict[str, Any]]]) -> int:
        count = 0
        for page in pages:
            for raw in page:
                raw.setdefault("kind", kind.name)
                raw.setdefault("apiVersion", kind.api_version)
                self._cache.seen(kind, None, raw)
                count += 1
        return count

    def doubt(self, namespace: str) -> None:
        """A watch was refused there: whether the namespace is lost is looked at soon."""
        if namespace not in self._cache.lost:
            self._checked[DEPLOYMENT.name] = float("-inf")

    def due(self, kind: Kind, now: float) -> bool:
        """Whether objects of this kind must be compared with the API server again."""
        checked = self._checked.get(kind.name, 0.0)
        relisted = self._cache.relisted.get(kind.name, 0.0)
        every = LOST_SECONDS if self._cache.lost and kind is DEPLOYMENT else EVERY_SECONDS
        return now - checked > every or (relisted > checked and now - relisted > _SETTLED_SECONDS)

    def check(self, kind: Kind) -> int:
        """Puts the cache right about one kind. Returns how many objects the watch had missed.

        Raises:
            ClusterError: the API server did not answer all that was asked; the check is due still.
        """
        began = time.monotonic()
        relisted = self._cache.relisted.get(kind.name, 0.0) > self._checked.get(kind.name, 0.0)
        listed = read_again(partial(self._once, kind))
        for namespace in self._cache.lost:
            # A watch that was agreed to before goes on telling.
            self._drop(kind, namespace)
        if relisted:
            # That a new list tells nothing of what has gone is no fault of the watch, and what has gone is not waited
            # for: children of a deployment that is no more would be made again and again.
            for which in self._gone(kind, listed, began):
                if self._repair(kind, *which):
                    log.info("was deleted while no watch ran", kind=kind.name, namespace=which[0], name=which[1])
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
        self._find_strays(kind)
        # Only now: one that broke off in the middle is due still.
        self._checked[kind.name] = began
        return missed

    def _find_strays(self, kind: Kind) -> None:
        """Find objects that lost the label that watches select by, by their other labels."""
        if kind.selector != OURS or kind is ENDPOINT_SLICE:
            return
        for page in self._pages(kind, limit=250, selector=STRAY):
            for raw in page:
                self._departures.stray(kind, {"kind": kind.name, "apiVersion": kind.api_version, **raw})

    def _pages(
        self, kind: Kind, *, limit: int, metadata_only: bool = False, selector: str | None = None
    ) -> Iterator[list[dict[str, Any]]]:
        """Of all namespaces but those that are lost, which only a list of deployments can change.

        Raises:
            ClusterError: also where every namespace is lost: a right is missing then, as where there is but one.
        """
        refused: ClusterError | None = None
        several = kind.namespaced and self._namespaces != (None,)
        where = (
            [one for one in self._namespaces if kind is DEPLOYMENT or one not in self._cache.lost]
            if several
            else [None]
        )
        for namespace in where:
            pages = self._cluster.pages(
                kind, namespace, selector=selector or kind.selector, metadata_only=metadata_only, limit=limit
            )
            try:
                first = next(pages)
            except (ForbiddenError, NotFoundError) as error:
                if namespace is None or not (kind is DEPLOYMENT or self._refuses(namespace)):
                    raise
                refused = error
                self._lose(namespace, error)
                continue
            if namespace is not None and namespace in self._cache.lost and not self._regain(namespace):
                continue
            yield first
            yield from pages
        if several and len(self._cache.lost) == len(self._namespaces):
            raise refused or ForbiddenError("no namespace lets its deployments be listed", status=403)

    def _refuses(self, namespace: str) -> bool:
        try:
            next(self._cluster.pages(DEPLOYMENT, namespace, metadata_only=True, limit=1))
        except (ForbiddenError, NotFoundError):
            return True
        return False

    def _lose(self, namespace: str, error: ClusterError) -> None:
        if namespace in self._cache.lost:
            return
        log.warning("a namespace is served no more: is it there, and the operator's Role in it?", namespace=namespace,
                    error=str(error))  # fmt: skip
        self._cache.lost |= {namespace}
        for name in list(self._checked):
            self._drop(BY_NAME[name], namespace)

    def forget(self, kind: Kind) -> None:
        """The cluster has no such kind any more, hence no object of it."""
        self._checked.pop(kind.name, None)
        self.missed.pop(kind.name, None)
        for namespace in {where for where, _ in self._cache.listed(kind)}:
            self._drop(kind, namespace)

    def _drop(self, kind: Kind, namespace: str) -> None:
        for (where, name), (uid, _, _) in self._cache.listed(kind).items():
            if where == namespace:
                about = {"metadata": {"namespace": namespace, "name": name, "uid": uid}}
                self._cache.seen(kind, "LOST", about, quiet=True)

    def _regain(self, namespace: str) -> bool:
        """Everything of it is known before anything is done there: half of it would be created again."""
        try:
            for kind in [BY_NAME[name] for name in self._checked if BY_NAME[name].namespaced]:
                self._bring(kind, self._cluster.pages(kind, namespace, selector=kind.selector))
        except ClusterError as error:
            log.warning("a namespace is not yet served again", namespace=namespace, error=str(error))
            return False
        self._cache.lost -= {namespace}
        log.info("a namespace is served again", namespace=namespace)
        self._regained(namespace)
        return True

    def _once(self, kind: Kind) -> Listed:
        listed: Listed = {}
        for page in self._pages(kind, metadata_only=True, limit=1000):
            for raw in page:
                about = raw["metadata"]
                listed[about.get("namespace") or "", about["name"]] = (about["uid"], about["resourceVersion"])
        return listed

    def _gone(self, kind: Kind, listed: Listed, began: float) -> set[tuple[str, str]]:
        known = self._cache.listed(kind).items()
        gone = {which for which, (uid, _, seen) in known if seen < began and listed.get(which, ("",))[0] != uid}
        return {which for which in gone if which[0] not in self._cache.lost} if self._cache.lost else gone

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
        if wanted and parse.labels(raw).get(wanted[0]) != wanted[1]:
            self._departures.doubt(kind, raw)
            return False
        return self._cache.seen(kind, None, raw)


class Rounds:
    """The thread that checks each kind when its time comes."""

    def __init__(
        self, verifier: Verifier, watched: Callable[[], Sequence[Kind]], alarm: Callable[[Kind], None]
    ) -> None:
        self._verifier, self._watched, self._alarm = verifier, watched, alarm
        self.refused: dict[str, str] = {}
        """Kinds that may not be listed at all, and the API server's words."""
        self._failed: dict[str, tuple[float, str]] = {}
        """When a kind's last check failed, and of what."""
        self._stop = threading.Event()
        self.pulse = Pulse("verify", self._run, STUCK_SECONDS)

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            # Each check may take long: afterwards start at the first kind again, which owns all others.
            self.pulse.beat()
            while (kind := self._due()) is not None and not self._stop.is_set():
                self.pulse.beat()
                try:
                    if self._verifier.check(kind):
                        self._alarm(kind)
                    self._failed.pop(kind.name, None)
                    self.refused.pop(kind.name, None)
                except ClusterError as error:
                    self._note(kind, error)
                except Exception as error:
                    log.exception("this is a bug", kind=kind.name)
                    self._failed[kind.name] = (time.monotonic(), str(error))

    def _note(self, kind: Kind, error: ClusterError) -> None:
        _, told = self._failed.get(kind.name, (0.0, ""))
        self._failed[kind.name] = (time.monotonic(), str(error))
        if isinstance(error, ForbiddenError | NotFoundError):
            self.refused[kind.name] = f"{kind.plural} cannot be listed: {error}"
        if told != str(error):
            log.warning("a kind could not be checked", kind=kind.name, error=str(error))

    def _due(self) -> Kind | None:
        """The first that is due, but for those that have just failed: one that may not be listed holds up no other."""
        now = time.monotonic()
        rests = {name for name, (at, _) in self._failed.items() if now - at < RETRY_SECONDS}
        kinds = (kind for kind in self._watched() if kind.name not in rests)
        return next((kind for kind in kinds if self._verifier.due(kind, now)), None)


def _newer(version: str, known: str) -> bool:
    return older(known, version) if ordered(version, known) else version != known
