"""Writes a status where it differs from what the API server holds; where only words have, not all the time."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from plimsoll.api.status import known
from plimsoll.operator import kinds, parse
from plimsoll.operator.cluster import Cluster
from plimsoll.operator.entries import Key
from plimsoll.operator.metrics import Metrics
from plimsoll.operator.snapshot import Deployment
from plimsoll.operator.watch_cache import Cache

#: A status in which no condition and no phase has changed waits until the last one is so old: a pod that starts has
#: something new to say several times a second, of which a moment later nothing is left.
WORDS_SECONDS = 2.0


class Reporter:
    """Statuses of deployments and jobs. Safe from several threads for different keys."""

    def __init__(
        self, cluster: Cluster, cache: Cache, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cluster, self._cache, self._metrics, self._clock = cluster, cache, metrics, clock
        self._written_at: dict[Key, float] = {}

    def report(self, deployment: Deployment, status: Mapping[str, Any]) -> float | None:
        """Makes the deployment's status read as `status`. Returns the seconds that it has to wait, if it has to.

        Raises:
            NotFoundError: the object is gone.
            ConflictError: it has changed since it was looked at.
            ClusterError: it could not be written.
            NotLeaderError: the lease is gone.
        """
        kind = kinds.BY_NAME[deployment.kind]
        patch = difference(known(status, parse.STATUSES[deployment.kind]), deployment.status)
        if not patch:
            return None
        age = self._clock() - self._written_at.get(deployment.key, float("-inf"))
        if age < WORDS_SECONDS and turn(status) == turn(deployment.status):
            return WORDS_SECONDS - age
        version = self._cache.version(kind, deployment.namespace, deployment.name) or None
        body = {"metadata": {"uid": deployment.uid, "resourceVersion": version}, "status": patch}
        answer = self._cluster.merge(kind, deployment.namespace, deployment.name, body, "status")
        self._written_at[deployment.key] = self._clock()
        self._metrics.writes.labels(kind.name).inc()
        # Who waits for a job looks when its status moves.
        self._cache.seen(kind, None, answer, quiet=kind is kinds.DEPLOYMENT)
        return None

    def forget(self, key: Key) -> None:
        """There is no such deployment any more."""
        self._written_at.pop(key, None)


def turn(status: Mapping[str, Any]) -> tuple[Any, ...]:
    """What somebody may be waiting for: the same in two statuses that differ in words and counts alone."""
    conditions = status.get("conditions") or ()
    told = sorted((str(one.get("type")), str(one.get("status")), str(one.get("reason"))) for one in conditions)
    return status.get("observedGeneration"), status.get("phase"), told


def difference(wanted: Mapping[str, Any], live: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch that makes `live` read as `wanted`; empty if it does."""
    patch: dict[str, Any] = {key: None for key in live if key not in wanted}
    for key, value in wanted.items():
        have = live.get(key)
        if isinstance(value, Mapping) and isinstance(have, Mapping):
            if deeper := difference(value, have):
                patch[key] = deeper
        elif value is None:
            if key in live:
                patch[key] = None
        elif value != have:
            patch[key] = value
    return patch
