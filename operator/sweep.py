"""What no deployment refers to any more: inspect pods and records belong to a source, so no owner takes them along."""

import threading
import time
from collections.abc import Callable

import structlog

from plimsoll.operator import names
from plimsoll.operator.cluster import Cluster, ClusterError, ForbiddenError, InvalidError, NotLeaderError
from plimsoll.operator.entries import Key
from plimsoll.operator.kinds import BY_NAME, CONFIG_MAP, POLICY
from plimsoll.operator.pulse import Pulse
from plimsoll.operator.watch_cache import Cache

log = structlog.get_logger("plimsoll.operator.sweep")

#: A deployment that is deleted and made again need not be inspected again.
KEEP_RECORDS_SECONDS = 3600.0
#: One removal takes less, retries included.
STUCK_SECONDS = 300.0


class Sweeper:
    """Removes what is left over."""

    def __init__(
        self, cluster: Cluster, cache: Cache, leading: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cluster, self._cache, self._leading, self._clock = cluster, cache, leading, clock
        self._unwanted: dict[Key, float] = {}
        self._stop = threading.Event()
        self.pulse = Pulse("sweep", self._run, STUCK_SECONDS)

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(5.0):
            self.pulse.beat()
            if self._leading():
                try:
                    self.sweep()
                    self._cache.tidy()
                except NotLeaderError:
                    continue
                except ClusterError as error:
                    log.warning("sweeping will be tried again", error=str(error))
                except Exception:
                    log.exception("this is a bug")

    def sweep(self) -> None:
        """Once through everything. Raises ClusterError, NotLeaderError."""
        now = self._clock()
        sources = self._cache.inspected()
        there = {(one.namespace, one.key) for one in sources if not one.wanted}
        self._unwanted = {key: at for key, at in self._unwanted.items() if key in there}
        for one in sources:
            if one.wanted:
                continue
            since = self._unwanted.setdefault((one.namespace, one.key), now)
            for kind, name, entry in one.parts:
                if kind != CONFIG_MAP.name or now - since > KEEP_RECORDS_SECONDS:
                    self._remove(one.namespace, kind, name, entry.uid, "no object names its source")
        for namespace, uid in self._cache.unused_policies():
            self._remove(namespace, POLICY.name, names.INSPECT_POLICY, uid, "nothing here is inspected any more")

    def _remove(self, namespace: str, kind: str, name: str, uid: str, why: str) -> None:
        self.pulse.beat()
        try:
            if self._cluster.delete(BY_NAME[kind], namespace, name, uid):
                log.info("deleted", kind=kind, namespace=namespace, name=name, why=why)
        except (ForbiddenError, InvalidError) as error:
            # One that may not be removed is no reason to leave the others.
            log.warning("cannot be removed", kind=kind, namespace=namespace, name=name, error=str(error))
