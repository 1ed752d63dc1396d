"""Carries out what the planner decided. Each write's answer goes into the cache, so that the next look sees it."""

import secrets
from collections.abc import Mapping
from typing import Any

import structlog

from plimsoll.api.group import KEY_BYTES, KEY_NAME
from plimsoll.operator import build, kinds, names, parse
from plimsoll.operator.actions import (
    Action,
    Apply,
    Delete,
    Label,
    MakeKey,
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
from plimsoll.operator.snapshot import ReplicaSet, Snapshot, StatefulSet
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
            case MakeKey():
                return self._make_key(key, action)
            case Label(pod=name, labels=labels):
                patch = {"metadata": {"labels": dict(labels)}}
                return self._merge(key, kinds.POD, name, patch, "labelled", str(labels))
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
            self._cache.seen(kind, None, live, quiet=True)
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
        kind = BY_NAME[action.kind]
        group = kind is kinds.STATEFUL_SET
        live: ReplicaSet | StatefulSet | None = next(
            (one for one in (snapshot.stateful_sets if group else snapshot.replica_sets) if one.name == action.name),
            None,
        )
        if live is None:
            return False
        has = live.pods if isinstance(live, StatefulSet) else live.replicas
        if has == action.replicas:
            return False
        before = self._cache.version(kind, key[0], live.name)
        try:
            if isinstance(live, StatefulSet):
                answer = self._cluster.scale(kind, key[0], live.name, live.uid, has, action.replicas)
            else:
                answer = self._scaled(key, live, action.replicas, snapshot)
        except ConflictError:
            # Should the watch be dead, the next look would fail in the same way.
            fresh = self._cluster.get(kind, key[0], live.name)
            self._cache.seen(kind, None, fresh, quiet=True)
            raise
        return self._note(kind, before, answer, key, f"scaled {has} to {action.replicas}", action.why)

    def _scaled(self, key: Key, live: ReplicaSet, replicas: int, snapshot: Snapshot) -> dict[str, Any]:
        kind = kinds.REPLICA_SET
        groups = parse.annotations(snapshot.children.get((kind.name, live.name), {})).get(names.GROUPS)
        if groups is None:
            return self._cluster.scale(kind, key[0], live.name, live.uid, live.replicas, replicas)
        path = f"/metadata/annotations/{names.GROUPS.replace('/', '~1')}"
        return self._cluster.swap(kind, key[0], live.name, live.uid, path, groups, str(replicas))

    def _make_key(self, key: Key, action: MakeKey) -> bool:
        """Neither the cache nor a log has what is in it."""
        about = action.object["metadata"]
        body = {**action.object, "stringData": {KEY_NAME: secrets.token_hex(KEY_BYTES)}}
        if self._created(kinds.SECRET, body) is None:
            return False
        self._metrics.writes.labels(kinds.SECRET.name).inc()
        log.info("made", kind=kinds.SECRET.name, namespace=key[0], name=about["name"], deployment=key[1])
        return True

    def _annotate(self, key: Key, name: str, annotation: str, value: str | None) -> bool:
        patch = {"metadata": {"annotations": {annotation: value}}}
        return self._merge(key, kinds.REPLICA_SET, name, patch, f"marked {annotation}", value or "")

    def _merge(self, key: Key, kind: Kind, name: str, patch: Mapping[str, Any], what: str, why: str) -> bool:
        before = self._cache.version(kind, key[0], name)
        try:
            answer = self._cluster.merge(kind, key[0], name, patch)
        except NotFoundError:
            return False
        return self._note(kind, before, answer, key, what, why)

    def _delete(self, key: Key, kind: Kind, name: str, why: str) -> bool:
        # Without a known uid nothing is deleted: it may be another object of that name by now.
        uid = self._cache.uid(kind, key[0], name)
        if uid is None or not self._cluster.delete(kind, key[0], name, uid):
            return False
        if kind is kinds.STATEFUL_SET:
            # Its pods are counted by it: another look must not take it for one that serves, and end a second one.
            gone = {"namespace": key[0], "name": name, "uid": uid}
            version = self._cache.version(kind, key[0], name)
            self._cache.seen(kind, "DELETED", {"metadata": {**gone, "resourceVersion": version}})
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
        self._cache.seen(kind, None, answer)
        self._metrics.writes.labels(kind.name).inc()
        name = about.get("name")
        log.info(what, kind=kind.name, namespace=key[0], name=name, deployment=key[1], why=why)
        return True
