"""One look at one deployment: what is written, what is not, and what becomes of errors."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.operator import kinds, names
from plimsoll.operator.actions import Action, Apply, Delete, Event, MarkProven, Plan, Scale, ordered
from plimsoll.operator.cluster import Cluster
from plimsoll.operator.events import Events
from plimsoll.operator.reconcile import Reconciler
from plimsoll.operator.report import difference
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import Snapshot
from plimsoll.operator.usage import Usage
from plimsoll.operator.watch_cache import Cache
from plimsoll.operator.workqueue import WorkQueue

KEY = ("ns", "a")
MINE = {"labels": {names.DEPLOYMENT: "a", names.MANAGED_BY: names.MANAGER}}
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "a", "namespace": "ns", **MINE},
    "spec": {"x": 1},
}


NODE_STATUS = {
    "conditions": [{"type": "Ready", "status": "True"}], "allocatable": {"nvidia.com/gpu": "2", "pods": "110"},
}  # fmt: skip


class World:
    """An API server with one deployment, a cache that knows it, and a planner of which each test says what it plans."""

    def __init__(self, api: Any, cluster: Cluster, cache: Cache, metrics: Any, make: Callable[..., Any]) -> None:
        self.api, self.cache, self.metrics = api, cache, metrics
        self.plans: list[Plan] = []
        self.looks: list[Snapshot] = []
        self.now = 0.0
        self.queue = WorkQueue(metrics, clock=lambda: self.now)
        self.queue.open()
        self.reconciler = Reconciler(
            cluster, cache, self.queue, Settings(), metrics, self.plan, Usage(cluster), Events(cluster).emit
        )
        cache.seen(kinds.DEPLOYMENT, None, api.put(kinds.DEPLOYMENT, make(kinds.DEPLOYMENT, "a", spec={})))
        self.sets = make(kinds.REPLICA_SET, "a-1", metadata=MINE, spec={"replicas": 1})

    def plan(self, snapshot: Snapshot, settings: Settings, version: str) -> Plan:
        self.looks.append(snapshot)
        return self.plans.pop(0) if len(self.plans) > 1 else self.plans[0]

    def work(self, *plans: Plan) -> Sequence[tuple[str, str]]:
        """One turn of a worker. Returns the writes it made."""
        self.plans, before = list(plans), len(self.api.requests)
        self.queue.add(KEY)
        assert self.queue.get(0) == KEY
        self.reconciler.work(KEY)
        return [(verb, path.partition("?")[0]) for verb, path in self.api.requests[before:] if verb != "GET"]

    def errors(self) -> dict[str, float]:
        samples = [s for metric in self.metrics.errors.collect() for s in metric.samples if s.name.endswith("_total")]
        return {one.labels["reason"]: one.value for one in samples}


@pytest.fixture
def world(api: Any, cluster: Cluster, cache: Cache, metrics: Any, make: Any) -> World:
    return World(api, cluster, cache, metrics, make)


def doing(*actions: Action, **more: Any) -> Plan:
    return Plan(actions=actions, **more)


def test_what_a_pod_waits_for_is_asked_before_anything_is_said(world: World) -> None:
    world.work(doing(needs_events=True, status={"phase": "Pending"}), doing(status={"phase": "Loading"}))
    assert len(world.looks) == 2
    assert world.api.objects[kinds.DEPLOYMENT.path("ns", "a")]["status"] == {"phase": "Loading"}


def test_a_plan_without_anything_new_writes_nothing(world: World) -> None:
    plan = doing(Apply(SERVICE), status={"phase": "Ready"})
    assert len(world.work(plan)) == 2
    assert len(world.work(plan)) == 1  # The planner asked for the apply; it changed nothing.
    assert world.work(doing(status={"phase": "Ready"})) == []


def test_the_status_is_written_where_it_differs_and_what_is_gone_is_removed(world: World) -> None:
    world.work(
        doing(status={"phase": "Loading", "load": {"runningRequests": 1, "waitingRequests": 2}, "message": "soon"})
    )
    world.work(doing(status={"phase": "Ready", "load": {"runningRequests": 1}}))
    stored = world.api.objects[kinds.DEPLOYMENT.path(*KEY)]
    assert stored["status"] == {"phase": "Ready", "load": {"runningRequests": 1}}


def test_what_the_crd_does_not_have_is_not_written_again_and_again(world: World) -> None:
    plan = doing(
        status={"phase": "Loading", "startup": {"load": {"bytes": 1, "speed": 5}, "elsewhere": {"seconds": 2}}}
    )
    world.work(plan)
    assert world.api.objects[kinds.DEPLOYMENT.path(*KEY)]["status"]["startup"] == {"load": {"bytes": 1}}
    assert world.work(plan) == []


def test_a_note_that_cannot_be_read_is_told_once_on_the_object_that_has_it(world: World) -> None:
    world.sets["metadata"]["annotations"] = {names.FAILED: '{"at":"0001-01-01T00:00:00+14:00"}', names.NUMBER: "9" * 99}
    world.cache.seen(kinds.REPLICA_SET, None, world.sets)
    for _ in range(3):
        world.work(doing(status={"phase": "Ready"}))
    told = world.api.under(kinds.EVENT.path("ns"))
    assert [one["count"] for one in told] == [1, 1]
    about = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "namespace": "ns", "name": "a-1", "uid": "uid-a-1"}
    for event, note in zip(told, (names.NUMBER, names.FAILED), strict=True):
        assert event["involvedObject"] == about
        assert (event["type"], event["reason"]) == ("Warning", "NoteIgnored")
        assert f"metadata.annotations[{note}]: must be" in event["message"]


def test_events_are_told_once_the_status_is_written_and_each_once(world: World) -> None:
    event = Event("Normal", "Serving", "1 of 1")
    plan = doing(status={"phase": "Ready"}, events=(event, event))
    world.api.faults = [(409, {}), (404, {})]
    writes = world.work(plan)
    assert writes == [("PATCH", kinds.DEPLOYMENT.path(*KEY, "status"))]
    world.now += 1000
    writes = world.work(plan)
    assert [verb for verb, _ in writes] == ["PATCH", "POST"]
    world.work(replace(plan, status={}))
    (stored,) = world.api.under(kinds.EVENT.path("ns"))
    assert (stored["count"], stored["reason"], stored["involvedObject"]["name"]) == (2, "Serving", "a")


def test_a_lost_event_harms_nobody(world: World) -> None:
    world.api.faults = [None, (403, {})]
    world.work(doing(status={"phase": "Ready"}, events=(Event("Normal", "Serving", ""),)))
    assert world.errors() == {}


def test_a_status_that_somebody_changed_meanwhile_is_read_anew(world: World) -> None:
    world.api.put(kinds.DEPLOYMENT, {**world.api.objects[kinds.DEPLOYMENT.path(*KEY)], "spec": {"replicas": 2}})
    world.work(doing(status={"phase": "Ready"}))
    assert world.errors() == {"Conflict": 1}
    world.now += 1000
    world.work(doing(status={"phase": "Ready"}))
    assert world.looks[-1].deployment.spec == {"replicas": 2}
    assert world.api.objects[kinds.DEPLOYMENT.path(*KEY)]["status"] == {"phase": "Ready"}


def test_pods_come_before_what_only_leads_to_them_and_after_what_guards_them(world: World) -> None:
    policy = {**SERVICE, "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}
    sets = {**SERVICE, "apiVersion": "apps/v1", "kind": "ReplicaSet"}
    plan = doing(*ordered((Apply(SERVICE), Apply(policy), Apply(sets))), status={"phase": "Pending"})
    writes = world.work(plan)
    assert [path.split("/")[-2] for _, path in writes] == ["networkpolicies", "replicasets"], "new ones may be waiting"
    world.now += 60.0
    writes = world.work(plan)
    assert [path.split("/")[-2] for _, path in writes] == [
        "networkpolicies", "replicasets", "services", "a",
    ], "the rest once the rush is over"  # fmt: skip


def test_scaling_and_marking_see_what_is_there(world: World) -> None:
    world.cache.seen(kinds.REPLICA_SET, None, world.api.put(kinds.REPLICA_SET, world.sets))
    world.work(doing(Scale("a-1", 2), MarkProven("a-1")))
    stored = world.api.objects[kinds.REPLICA_SET.path("ns", "a-1")]
    assert stored["spec"]["replicas"] == 2
    assert stored["metadata"]["annotations"] == {names.PROVEN: "true"}
    assert world.work(doing(Scale("a-1", 2))) == []
    assert world.work(doing(Scale("gone", 2), Delete("ReplicaSet", "gone"))) == []
    assert world.work(doing(Delete("ReplicaSet", "a-1"))) == [("DELETE", kinds.REPLICA_SET.path("ns", "a-1"))]


def test_scaling_that_another_did_is_read_anew_even_without_a_watch(world: World) -> None:
    world.cache.seen(kinds.REPLICA_SET, None, world.api.put(kinds.REPLICA_SET, world.sets))
    world.api.put(kinds.REPLICA_SET, {**world.sets, "spec": {"replicas": 5}})
    world.work(doing(Scale("a-1", 2)))
    assert world.errors() == {"Conflict": 1}
    world.now += 1000
    world.work(doing(Scale("a-1", 2)))
    assert world.api.objects[kinds.REPLICA_SET.path("ns", "a-1")]["spec"]["replicas"] == 2


def test_a_look_for_room_lists_once_and_plans_again(world: World, make: Any) -> None:
    world.cache.sees_nodes = True
    world.api.pages[kinds.POD.path()] = [[make(kinds.POD, "p", spec={"nodeName": "n"})]]
    world.cache.seen(kinds.NODE, None, make(kinds.NODE, "n", status=NODE_STATUS))
    world.work(Plan(needs_usage=True), Plan())
    first, second = world.looks
    assert (first.room, first.taken) == (None, None)
    assert second.room is not None
    assert second.room({"spec": {"containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]}}) == 2
    assert len([path for _, path in world.api.requests if path.startswith(kinds.POD.path())]) == 1


def test_all_that_a_plan_needs_is_read_at_once_so_that_the_second_plan_is_the_last(world: World, make: Any) -> None:
    world.cache.sees_nodes = True
    world.api.pages[kinds.POD.path()] = [[]]
    world.api.put(kinds.CLAIM, make(kinds.CLAIM, "c", status={"capacity": {"storage": "1Gi"}}))
    world.work(Plan(needs_usage=True, needs_claims=("c",), needs_events=True))
    first, second = world.looks
    assert (first.taken, first.room, first.claims) == (None, None, None)
    assert (second.taken, second.claims) == ({}, {"c": 1 << 30})
    assert second.room is not None


def test_what_stays_on_a_node_is_counted_without_its_own_pods_and_those_that_end(world: World, make: Any) -> None:
    world.cache.sees_nodes = True
    asks = [{"name": "c", "resources": {"requests": {"memory": "1Gi"}}}]

    def pod(name: str, labels: dict[str, str] | None = None, **spec: Any) -> Any:
        found = make(kinds.POD, name, spec={"nodeName": "n", "containers": asks, **spec})
        found["metadata"]["labels"] = labels or {}
        return found

    own = pod("own", {names.DEPLOYMENT: KEY[1]})
    world.api.pages[kinds.POD.path()] = [[pod("agent"), own, pod("job", restartPolicy="Never")]]
    world.work(Plan(needs_usage=True), Plan())
    assert [look.taken for look in world.looks] == [None, {"n": 1 << 30}]


def test_a_refusal_is_told_and_the_rest_is_done(world: World) -> None:
    budget = {**SERVICE, "apiVersion": "policy/v1", "kind": "PodDisruptionBudget"}
    world.api.faults = [(403, {})]
    world.work(doing(Apply(SERVICE), Apply(budget), status={"observedGeneration": 1, "conditions": []}))
    assert kinds.BUDGET.path("ns", "a") in world.api.objects
    status = world.api.objects[kinds.DEPLOYMENT.path(*KEY)]["status"]
    assert "made up 403" in status["message"]
    assert [(one["type"], one["status"]) for one in status["conditions"]] == [("Stalled", "True")]
    (event,) = world.api.under(kinds.EVENT.path("ns"))
    assert (event["type"], event["reason"], event["message"]) == ("Warning", "Refused", "made up 403")
    assert world.errors() == {"Forbidden": 1}
    assert world.queue.get(0) is None  # It comes again, but not at once.


def test_a_bug_in_the_planner_hurts_one_deployment_a_little(world: World) -> None:
    def broken(*_: Any) -> Plan:
        raise KeyError("oops")

    world.reconciler._plan = broken
    assert world.work(Plan()) == [("POST", kinds.EVENT.path("ns"))]
    assert world.errors() == {"Bug": 1}
    [event] = world.api.under(kinds.EVENT.path("ns"))
    assert (event["reason"], event["involvedObject"]["name"]) == ("InternalError", "a")
    assert world.queue.get(0) is None
    world.reconciler._plan = world.plan
    world.now += 10
    assert world.queue.get(0) == KEY


def test_without_the_lease_nothing_is_written_and_a_lease_that_was_late_loses_nothing(
    world: World, cluster: Cluster
) -> None:
    cluster.may_write = lambda: False
    assert world.work(doing(Apply(SERVICE), status={"phase": "Ready"})) == []
    assert world.errors() == {}
    assert world.queue.get(0) is None
    # The same process got it back before it noticed that it had lost it: nobody wakes all deployments.
    world.now += 1000
    assert world.queue.get(0) == KEY


def test_time_alone_brings_it_back_when_the_plan_says_so(world: World) -> None:
    world.work(doing(again_in=30.0))
    world.now += 29
    assert world.queue.get(0) is None
    world.now += 2
    assert world.queue.get(0) == KEY


def test_two_writers_that_undo_each_other_do_not_take_all_the_time(world: World) -> None:
    for turn in range(40):
        world.work(doing(Apply({**SERVICE, "spec": {"x": turn}})))
        if "Unavailable" in world.errors():
            break
        world.now += 0.001
    assert world.errors() == {"Unavailable": 1}


JSON = st.recursive(
    st.booleans() | st.integers(0, 3) | st.sampled_from(["a", "b"]) | st.lists(st.integers(0, 2), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
STATUS = st.dictionaries(st.sampled_from("abc"), JSON, max_size=3)


@settings(deadline=None)
@given(STATUS, STATUS)
def test_the_patch_makes_one_status_of_the_other(wanted: dict[str, Any], live: dict[str, Any]) -> None:
    def merged(base: Any, patch: Any) -> Any:
        if not isinstance(patch, dict):
            return patch
        result = dict(base) if isinstance(base, dict) else {}
        for key, value in patch.items():
            result[key] = merged(result.get(key), value)
            if value is None:
                del result[key]
        return result

    patch = difference(wanted, live)
    assert merged(live, patch) == wanted
    assert (patch == {}) == (wanted == live)


def test_an_object_whose_status_cannot_be_stored_hears_by_events(world: World) -> None:
    world.api.faults = [(422, {})]
    refused = Event("Warning", "InvalidSpec", "spec.model must be a mapping (found 5)")
    world.work(doing(status={"phase": "Refused"}, events=(refused,)))
    assert world.errors() == {"Invalid": 1}
    [event] = world.api.under(kinds.EVENT.path("ns"))
    assert (event["reason"], event["message"]) == ("InvalidSpec", refused.message)
