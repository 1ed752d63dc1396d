"""Carries out what the planner decided. Each write's answer goes into the cache, so that the next look sees it."""

from collections.abc import Mapping
from typing import Any

import structlog

from plimsoll.operator import build, kinds, names, parse
from plimsoll.operator.actions import (
    Action,
    Apply,
    Delete,
    MarkFailed,
    MarkProven,
    Record,
    Renumber,
    Scale,
)
from plimsoll.operator.cluster import Cluster, ConflictError, NotFoundError
from plimsoll.operator.entries import Key
from plimsoll.operator.kinds import BY_NAME, Kind
from plimsoll.operator.metrics import Metrics
from plimsoll.operator.ownership import check_ours
from plimsoll.operator.snapshot import Snapshot
from plimsoll.operator.watch_cache import Cache

log = structlog.get_logger("plimsoll.operator.apply")


class Applier:
    """Writes objects of one deployment at a time; safe from several threads for different deployments."""

    def __init__(self, cluster: Cluster, cache: Cache, metrics: Metrics) -> None:
        self._cluster, self._cache, self._metrics = cluster, cache, metrics

    def carry_out(self, action: Action, snapshot: Snapshot) -> bool:
        """Does it; True if this created something new in the cluster.

        Raises:
            ClusterError: the API server refused it, or somebody was faster.
            NotLeaderError: the lease is gone.
        """
        key = snapshot.deployment.key
        match action:
            case Apply():
                return self._apply(key, action, snapshot)
            case Scale():
                return self._scale(key, action, snapshot)
            case MarkFailed(name=name, failure=failure):
                return self._annotate(key, name, names.FAILED, None if failure is None else parse.failure_text(failure))
            case MarkProven(name=name):
                return self._annotate(key, name, names.PROVEN, "true")
            case Renumber(name=name, number=number):
                return self._annotate(key, name, names.NUMBER, str(number))
            case Delete():
                return self._delete(key, BY_NAME[action.kind], action.name, action.why)
            case Record(key=source):
                return self._record(key, source)

    def _apply(self, key: Key, action: Apply, snapshot: Snapshot) -> bool:
        body = action.object
        kind, name = BY_NAME[body["kind"]], body["metadata"]["name"]
        if kind is kinds.POD:
            # A pod is made once; the right to change pods is one we do not ask for.
            created = self._created(kind, body)
            return created is not None and self._note(kind, "", created, key, "made", action.why)
        known = (kind.name, name) in snapshot.children
        before, answer = self._put(kind, body) if known else self._made(kind, body)
        return self._note(kind, before, answer, key, "changed" if before else "made", action.why)

    def _put(self, kind: Kind, body: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Changes what is known to be ours. Returns the version that it had, and the API server's answer."""
        about = body["metadata"]
        return self._cache.version(kind, about["namespace"], about["name"]), self._cluster.apply(kind, body)

    def _made(self, kind: Kind, body: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The same for a new object: where another owner's object has that name, it is left unchanged.

        Raises:
            NameTakenError: there is one.
        """
        try:
            return "", self._cluster.apply(kind, body, new=True)
        except ConflictError:
            about = body["metadata"]
            try:
                live = self._cluster.get(kind, about["namespace"], about["name"])
            except NotFoundError:
                raise ConflictError(f"{kind.name} {about['name']} came and went") from None
            check_ours(body, live)
            self._cache.seen(kind, None, live, ours=True, quiet=True)
            found = parse.meta(live)
            return found["resourceVersion"], self._cluster.apply(
                kind, {**body, "metadata": {**about, "uid": found["uid"]}}
            )

    def _created(self, kind: Kind, body: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            return self._cluster.create(kind, body)
        except ConflictError as error:
            if error.reason == "AlreadyExists":
                return None
            raise

    def _scale(self, key: Key, action: Scale, snapshot: Snapshot) -> bool:
        live = next((one for one in snapshot.replica_sets if one.name == action.name), None)
        if live is None or live.replicas == action.replicas:
            return False
        before = live.resource_version
        try:
            answer = self._cluster.scale(kinds.REPLICA_SET, key[0], live.name, live.uid, live.replicas, action.replicas)
        except ConflictError:
            # Should the watch be dead, the next look would fail in the same way.
            fresh = self._cluster.get(kinds.REPLICA_SET, key[0], live.name)
            self._cache.seen(kinds.REPLICA_SET, None, fresh, ours=True, quiet=True)
            raise
        return self._note(
            kinds.REPLICA_SET, before, answer, key, f"scaled {live.replicas} to {action.replicas}", action.why
        )

    def _annotate(self, key: Key, name: str, annotation: str, value: str | None) -> bool:
        patch = {"metadata": {"annotations": {annotation: value}}}
        before = self._cache.version(kinds.REPLICA_SET, key[0], name)
        try:
            answer = self._cluster.merge(kinds.REPLICA_SET, key[0], name, patch)
        except NotFoundError:
            return False
        return self._note(kinds.REPLICA_SET, before, answer, key, f"marked {annotation}", value or "")

    def _delete(self, key: Key, kind: Kind, name: str, why: str) -> bool:
        # Without a known uid nothing is deleted: it may be another object of that name by now.
        uid = self._cache.uid(kind, key[0], name)
        if uid is None or not self._cluster.delete(kind, key[0], name, uid):
            return False
        self._metrics.writes.labels(kind.name).inc()
        log.info("deleted", kind=kind.name, namespace=key[0], name=name, deployment=key[1], why=why)
        return True

    def _record(self, key: Key, source: str) -> bool:
        """The facts outlive the pod that found them: recorded first, then the pod goes."""
        pod, found = self._cache.inspection(key[0], source)
        changed = False
        if pod is not None and not found:
            report = parse.inspection([parse.last_words(pod)])
            if report is not None:
                before, answer = self._made(kinds.CONFIG_MAP, build.record(key[0], source, report))
                changed = self._note(kinds.CONFIG_MAP, before, answer, key, "recorded", source)
                self._cache.forget_error(key[0], source)
        if pod is not None and not pod.deleting:
            changed |= self._delete(key, kinds.POD, pod.name, "its findings are recorded")
        return changed

    def _note(self, kind: Kind, before: str, answer: Mapping[str, Any], key: Key, what: str, why: str) -> bool:
        """An apply that changes nothing leaves the version as it was `before`: nothing to tell."""
        about = parse.meta(answer)
        if about.get("resourceVersion") == before:
            return False
        self._cache.seen(kind, None, answer, ours=True)
        self._metrics.writes.labels(kind.name).inc()
        name = about.get("name")
        log.info(what, kind=kind.name, namespace=key[0], name=name, deployment=key[1], why=why)
        return True
