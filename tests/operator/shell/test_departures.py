"""What leaves a watch is gone only if it is gone; what has lost its label gets it back."""

from collections.abc import Callable
from typing import Any

import pytest

from plimsoll.operator import kinds, names
from plimsoll.operator.cluster import Cluster, NotLeaderError
from plimsoll.operator.departures import FOLLOWER_SECONDS, Departures
from plimsoll.operator.kinds import Kind
from plimsoll.operator.metrics import Metrics
from plimsoll.operator.verify import Verifier
from plimsoll.operator.watch_cache import Cache

Make = Callable[..., dict[str, Any]]
KEY = ("ns", "a")
OWNED = {"ownerReferences": [{"kind": "ModelDeployment", "name": "a", "uid": "uid-a", "controller": True}]}
TAGS = {names.MANAGED_BY: names.MANAGER, names.DEPLOYMENT: "a", names.COMPONENT: "server", names.REVISION: "abc"}
CHILDREN = [kinds.REPLICA_SET, kinds.SERVICE, kinds.BUDGET, kinds.POLICY, kinds.POD]


class World:
    """A deployment and a child of each kind, as a watch has told of them."""

    def __init__(self, cluster: Cluster, cache: Cache, api: Any, make: Make) -> None:
        self.cluster, self.cache, self.api, self.make = cluster, cache, api, make
        self.now = 0.0
        self.departures = Departures(cluster, cache, clock=lambda: self.now)
        self.departures.heard(kinds.DEPLOYMENT, None, make(kinds.DEPLOYMENT, "a", spec={}))

    def child(self, kind: Kind, **meta: Any) -> dict[str, Any]:
        made = self.make(kind, "a-abc", metadata={"labels": dict(TAGS), **OWNED, **meta}, spec={})
        stored = self.api.put(kind, made)
        self.departures.heard(kind, "ADDED", stored)
        return dict(stored)

    def without(self, kind: Kind, raw: dict[str, Any], *labels: str) -> dict[str, Any]:
        """Takes labels off, and lets the watch tell of it as an API server does: the object as it was, deleted."""
        left = {key: value for key, value in raw["metadata"]["labels"].items() if key not in labels}
        stored = self.api.put(kind, {**raw, "metadata": {**raw["metadata"], "labels": left}})
        told = {**raw, "metadata": {**raw["metadata"], "resourceVersion": stored["metadata"]["resourceVersion"]}}
        self.departures.heard(kind, "DELETED", told)
        return told

    def knows(self, kind: Kind) -> bool:
        return self.cache.uid(kind, "ns", "a-abc") is not None

    def labels(self, kind: Kind) -> dict[str, str]:
        return dict(self.api.objects[kind.path("ns", "a-abc")]["metadata"]["labels"])


@pytest.fixture
def world(cluster: Cluster, cache: Cache, api: Any, make: Make) -> World:
    return World(cluster, cache, api, make)


@pytest.mark.parametrize("kind", CHILDREN, ids=lambda kind: kind.name)
@pytest.mark.parametrize("labels", [(names.MANAGED_BY,), tuple(TAGS)], ids=["one", "all"])
def test_an_object_that_loses_its_labels_is_kept_and_gets_them_back(
    world: World, kind: Kind, labels: tuple[str, ...]
) -> None:
    told = world.without(kind, world.child(kind), *labels)
    assert world.knows(kind), "until the API server has answered"
    assert world.departures.look(kind, told) is None
    assert world.labels(kind) == TAGS
    assert world.knows(kind)
    # The watch tells of it as of a new object, and of what happens to it afterwards.
    world.departures.heard(kind, "ADDED", world.api.objects[kind.path("ns", "a-abc")])
    later = world.api.put(kind, {**world.api.objects[kind.path("ns", "a-abc")], "spec": {"more": 1}})
    world.departures.heard(kind, "MODIFIED", later)
    assert world.cache.version(kind, "ns", "a-abc") == later["metadata"]["resourceVersion"]


@pytest.mark.parametrize("kind", CHILDREN, ids=lambda kind: kind.name)
def test_what_was_deleted_is_gone(world: World, kind: Kind) -> None:
    raw = world.child(kind)
    del world.api.objects[kind.path("ns", "a-abc")]
    world.departures.heard(kind, "DELETED", raw)
    assert world.departures.look(kind, raw) is None
    assert not world.knows(kind)


def test_what_says_that_it_is_being_deleted_or_has_no_owner_left_is_gone_at_once(world: World) -> None:
    raw = world.child(kinds.POD)
    ending = {**raw, "metadata": {**raw["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}}
    world.departures.heard(kinds.POD, "DELETED", ending)
    assert not world.knows(kinds.POD)
    raw = world.child(kinds.SERVICE)
    world.departures.heard(kinds.DEPLOYMENT, "DELETED", world.make(kinds.DEPLOYMENT, "a"))
    world.departures.heard(kinds.SERVICE, "DELETED", raw)
    assert not world.knows(kinds.SERVICE)


def test_a_pod_that_its_revision_has_released_is_ours_no_more(world: World) -> None:
    raw = world.child(kinds.POD)
    told = world.without(kinds.POD, {**raw, "metadata": {**raw["metadata"], "ownerReferences": []}}, *TAGS)
    world.departures.look(kinds.POD, {**told, "metadata": {**told["metadata"], **OWNED}})
    assert not world.knows(kinds.POD)
    assert world.labels(kinds.POD) == {}


def test_an_operator_that_does_not_lead_keeps_it_and_looks_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    told = world.without(kinds.REPLICA_SET, world.child(kinds.REPLICA_SET), names.MANAGED_BY)
    monkeypatch.setattr(world.cluster, "may_write", lambda: False)
    with pytest.raises(NotLeaderError):
        world.cluster.merge(kinds.REPLICA_SET, "ns", "a-abc", {})
    assert world.departures.look(kinds.REPLICA_SET, told) == FOLLOWER_SECONDS
    assert world.knows(kinds.REPLICA_SET)
    assert names.MANAGED_BY not in world.labels(kinds.REPLICA_SET)


def test_somebody_who_takes_the_label_each_time_is_not_fought_at_full_speed(world: World) -> None:
    raw, waits = world.child(kinds.SERVICE), []
    for _ in range(4):
        told = world.without(kinds.SERVICE, raw, names.MANAGED_BY)
        wait = world.departures.look(kinds.SERVICE, told)
        waits.append(wait or 0.0)
        world.now += wait or 0.0
        assert world.departures.look(kinds.SERVICE, told) is None
        assert world.labels(kinds.SERVICE) == TAGS
    assert waits == [0.0, 2.0, 4.0, 8.0]


def test_strays_are_found_when_the_operator_starts(world: World, metrics: Metrics) -> None:
    tags = {**TAGS, names.MANAGED_BY: "Helm"}
    ours = world.make(kinds.REPLICA_SET, "a-abc", metadata={"labels": tags, **OWNED})
    other = {"ownerReferences": [{**OWNED["ownerReferences"][0], "uid": "uid-of-another"}]}
    theirs = world.make(kinds.REPLICA_SET, "theirs", metadata={"labels": tags, **other})
    nobodys = world.make(kinds.REPLICA_SET, "nobodys", metadata={"labels": tags})
    for one in (ours, theirs, nobodys):
        world.api.put(kinds.REPLICA_SET, one)
    world.api.pages[kinds.REPLICA_SET.path()] = [[ours, theirs, nobodys]]
    Verifier(world.cluster, world.cache, (), metrics, departures=world.departures)._find_strays(kinds.REPLICA_SET)
    assert [world.departures.look(*one) for one in world.departures._next() or ()] == [None]
    assert world.labels(kinds.REPLICA_SET) == TAGS


def test_a_revision_without_the_label_of_its_deployment_is_its_all_the_same(world: World) -> None:
    selector = {"selector": {"matchLabels": {names.REVISION: "abc"}}, "replicas": 2}
    bare = {"labels": {names.MANAGED_BY: names.MANAGER}, **OWNED}
    raw = world.make(kinds.REPLICA_SET, "a-abc", metadata=bare, spec=selector)
    world.departures.heard(kinds.REPLICA_SET, "ADDED", raw)
    snapshot = world.cache.snapshot(KEY, 1.0)
    assert snapshot is not None
    assert [(one.name, one.revision) for one in snapshot.replica_sets] == [("a-abc", "abc")]
