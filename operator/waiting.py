"""Why a pod's containers are not created yet: a claim, a Secret or a ConfigMap that is not there, an image on its way.
And why a pod of a group is not created at all.

The kubelet says it in events alone. They are read of those pods only, when they have waited for a while; no right on
Secrets is needed.
"""

import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from plimsoll.operator import kinds
from plimsoll.operator.cluster import Cluster, ForbiddenError
from plimsoll.operator.plan.group_sets import lacks_pods
from plimsoll.operator.plan.job_run import podless
from plimsoll.operator.plan.trouble import waits_unexplained
from plimsoll.operator.shape import mapping, text
from plimsoll.operator.snapshot import BatchJob, Pod, Snapshot, StatefulSet

#: One reading of a pod's events serves for so long.
_FRESH_SECONDS = 5.0
_REMEMBERED = 256
#: Anybody may write events. A kubelet has a few about one pod.
_MOST_PAGES = 4
#: Says that others failed, and not why.
_EMPTY_WORDS = "timed out waiting for the condition"

#: What makes pods.
Owner = TypeVar("Owner", BatchJob, StatefulSet)


class Waiting:
    """Reads the events of pods that wait. Safe from any thread."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._lock = threading.Lock()
        self._read: OrderedDict[str, tuple[float, str, bool]] = OrderedDict()

    def explained(self, snapshot: Snapshot) -> Snapshot:
        """With `last_event` and `stuck` of the pods that have waited long enough.

        Raises:
            ClusterError: their events cannot be listed.
        """
        namespace, now = snapshot.deployment.namespace, snapshot.now
        looking = snapshot.inspecting
        if looking is not None and looking.pod is not None and waits_unexplained(looking.pod, now):
            looking = replace(looking, pod=self._explained(namespace, looking.pod))
        pods = tuple(self._explained(namespace, pod) if waits_unexplained(pod, now) else pod for pod in snapshot.pods)
        jobs = tuple(
            self._stuck(namespace, one) if podless(one, list(snapshot.pods), now) else one
            for one in snapshot.batch_jobs
        )
        groups = tuple(
            self._stuck(namespace, one) if lacks_pods(one, snapshot) else one for one in snapshot.stateful_sets
        )
        return replace(snapshot, pods=pods, inspecting=looking, batch_jobs=jobs, stateful_sets=groups)

    def _stuck(self, namespace: str, owner: Owner) -> Owner:
        event, stuck = self._last(namespace, owner.uid)
        return replace(owner, last_event=event if stuck else "")

    def _explained(self, namespace: str, pod: Pod) -> Pod:
        event, stuck = self._last(namespace, pod.uid)
        return replace(pod, last_event=event, stuck=stuck)

    def _last(self, namespace: str, uid: str) -> tuple[str, bool]:
        now = time.monotonic()
        with self._lock:
            at, told, stuck = self._read.get(uid, (-_FRESH_SECONDS, "", False))
        if now - at >= _FRESH_SECONDS:
            told, stuck = self._ask(namespace, uid)
            with self._lock:
                self._read[uid] = (now, told, stuck)
                self._read.move_to_end(uid)
                while len(self._read) > _REMEMBERED:
                    self._read.popitem(last=False)
        return told, stuck

    def _ask(self, namespace: str, uid: str) -> tuple[str, bool]:
        fields = f"involvedObject.uid={uid}"
        try:
            pages = itertools.islice(self._cluster.pages(kinds.EVENT, namespace, fields=fields), _MOST_PAGES)
            found = [one for page in pages for one in page]
        except ForbiddenError:
            return "", False  # A role of an earlier chart: the condition then says where to look.
        return last_told(found)


def last_told(events: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    """The latest words of a pod's events, and whether they are of a failure. A pull that began comes after every volume
    that was once missing, so of the same second the good news counts."""
    known = [one for one in events if _EMPTY_WORDS not in str(one.get("message"))] or events
    latest = max(known, key=lambda one: (_at(one), one.get("type") != "Warning"), default=None)
    if latest is None or latest.get("reason") == "Scheduled":
        return "", False
    return text(latest.get("message")) or text(latest.get("reason")), latest.get("type") == "Warning"


def _at(event: Mapping[str, Any]) -> str:
    """RFC 3339 in UTC, which sorts as text down to the second."""
    series = mapping(event.get("series"))
    return str(series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime") or "")[:19]
