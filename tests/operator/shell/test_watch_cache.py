"""The cache: whatever the order of what comes, the newest counts and nobody is forgotten."""

import json
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.operator import build, kinds, names
from plimsoll.operator.build.source import draft_key
from plimsoll.operator.snapshot import Inspecting, Page
from plimsoll.operator.watch_cache import Cache
from tests.support.built import INSPECTION

Make = Callable[..., dict[str, Any]]
KEY = ("ns", "a")


def labelled(**more: str) -> dict[str, Any]:
    return {"labels": {names.DEPLOYMENT: "a", names.MANAGED_BY: names.MANAGER, **more}}


def filled(cache: Cache, make: Make, version: int = 1) -> None:
    spec = {"model": {"source": "s1"}}
    cache.seen(
        kinds.DEPLOYMENT, None, make(kinds.DEPLOYMENT, "a", version, spec=spec, metadata={"generation": version})
    )


def test_a_deployments_corner_holds_what_is_its_own(cache: Cache, make: Make, real: Any) -> None:
    for name, kind in (("deployment", kinds.DEPLOYMENT), ("replica_set", kinds.REPLICA_SET), ("pod_ready", kinds.POD),
                       ("endpoint_slice", kinds.ENDPOINT_SLICE), ("record", kinds.CONFIG_MAP)):  # fmt: skip
        cache.seen(kind, None, real(name))
    stranger = make(kinds.SERVICE, "b", metadata={"labels": {names.DEPLOYMENT: "b"}, "namespace": "op-shell"})
    cache.seen(kinds.SERVICE, "ADDED", stranger)
    found = cache.snapshot(("op-shell", "a"), 5.0)
    assert found is not None
    assert found.now == 5.0
    (pod,), (revision,) = found.pods, found.replica_sets
    assert (pod.ready, pod.routable, pod.owner) == (True, True, revision.uid)
    assert set(found.children) == {("ReplicaSet", revision.name)}
    assert found.nodes is None


def test_what_an_earlier_deployment_of_its_name_left_is_no_revision_of_it(cache: Cache, make: Make) -> None:
    filled(cache, make)
    for name, owners in (("mine", ["uid-a"]), ("left", ["uid-before"]), ("orphan", [])):
        owned = {"ownerReferences": [{"uid": uid, "controller": True} for uid in owners]}
        cache.seen(kinds.REPLICA_SET, "ADDED", make(kinds.REPLICA_SET, name, metadata={**labelled(), **owned}))
    found = cache.snapshot(KEY, 1.0)
    assert found is not None
    assert {one.name for one in found.replica_sets} == {"mine", "orphan"}


def test_an_earlier_deployments_revision_says_nothing_of_what_is_served(cache: Cache, make: Make) -> None:
    output = {"job": "q", "uri": "pvc://claim/out", "digest": "sha256:1"}
    cache.seen(kinds.DEPLOYMENT, None, make(kinds.DEPLOYMENT, "a", spec={"model": {"quantizationJob": "q"}}))
    for version, owner, inspects in ((1, "uid-before", False), (2, "uid-a", True)):
        meta = {
            **labelled(), "annotations": {names.OUTPUT: json.dumps(output)},
            "ownerReferences": [{"uid": owner, "controller": True}],
        }  # fmt: skip
        cache.seen(kinds.REPLICA_SET, "ADDED", make(kinds.REPLICA_SET, "a-1", version, metadata=meta))
        found = cache.snapshot(KEY, 1.0)
        assert found is not None
        assert (found.inspecting is not None) == inspects


def test_a_source_is_looked_at_once_for_all_that_name_it(cache: Cache, make: Make, woken: list[Any]) -> None:
    filled(cache, make)
    other = make(kinds.DEPLOYMENT, "b", spec={"model": {"source": "s1"}})
    cache.seen(kinds.DEPLOYMENT, None, other)
    woken.clear()
    inspect = make(kinds.POD, "look", metadata={"labels": {names.SOURCE: "s1", names.MANAGED_BY: names.MANAGER}})
    cache.seen(kinds.POD, "ADDED", inspect)
    assert set(woken) == {("ns", "a"), ("ns", "b")}
    for key in woken:
        found = cache.snapshot(key, 1.0)
        assert found is not None
        assert found.inspecting is not None
        assert found.inspecting.pod is not None


def test_a_failed_look_is_remembered_after_its_pod_is_gone(cache: Cache, make: Make) -> None:
    filled(cache, make)
    ended = {"name": "inspect", "state": {"terminated": {"exitCode": 1, "message": "no such bucket"}}}
    pod = make(
        kinds.POD, "look", metadata={"labels": {names.SOURCE: "s1"}},
        status={"phase": "Failed", "containerStatuses": [ended]},
    )  # fmt: skip
    cache.seen(kinds.POD, "ADDED", pod)
    cache.seen(kinds.POD, "DELETED", pod)
    found = cache.snapshot(KEY, 1.0)
    assert found is not None
    assert found.inspecting is not None
    assert (found.inspecting.error, found.inspecting.pod) == ("no such bucket", None)
    cache.forget_error("ns", "s1")
    assert cache.snapshot(KEY, 1.0).inspecting.error is None  # type: ignore[union-attr]


def test_the_answer_to_our_own_write_counts_at_once(cache: Cache, make: Make, woken: list[Any]) -> None:
    filled(cache, make)
    woken.clear()
    service = make(kinds.SERVICE, "a", 7, metadata=labelled())
    cache.seen(kinds.SERVICE, None, service)
    assert woken == [KEY]
    assert ("Service", "a") in cache.snapshot(KEY, 1.0).children  # type: ignore[union-attr]
    cache.seen(kinds.SERVICE, "ADDED", service)
    cache.seen(kinds.SERVICE, "MODIFIED", {**service, "metadata": {**service["metadata"], "resourceVersion": "3"}})
    assert woken == [KEY]
    assert cache.version(kinds.SERVICE, "ns", "a") == "7"


def test_what_controllers_count_in_a_status_wakes_nobody(cache: Cache, make: Make, woken: list[Any]) -> None:
    blocked = {"type": "ReplicaFailure", "status": "True", "message": "quota"}
    for kind in (kinds.REPLICA_SET, kinds.SERVICE, kinds.BUDGET, kinds.POLICY):
        cache.seen(kind, "ADDED", make(kind, "a", 1, metadata=labelled(), spec={"x": 1}))
        woken.clear()
        counted = {"replicas": 1, "currentHealthy": 1, "conditions": []}
        cache.seen(kind, "MODIFIED", make(kind, "a", 2, metadata=labelled(), spec={"x": 1}, status=counted))
        assert woken == []
        assert cache.version(kind, "ns", "a") == "2"
        cache.seen(kind, "MODIFIED", make(kind, "a", 3, metadata=labelled(), spec={"x": 2}, status=counted))
        assert woken == [KEY]
    said = {"conditions": [blocked]}
    cache.seen(kinds.REPLICA_SET, "MODIFIED", make(kinds.REPLICA_SET, "a", 4, metadata=labelled(), status=said))
    filled(cache, make)
    (found,) = cache.snapshot(KEY, 1.0).replica_sets  # type: ignore[union-attr]
    assert (found.blocked, cache.version(kinds.REPLICA_SET, "ns", "a")) == ("quota", "4")


def test_a_new_slice_without_an_address_wakes_nobody_and_one_that_loses_it_does(
    cache: Cache, make: Make, woken: list[Any]
) -> None:
    ready = {"targetRef": {"uid": "uid-p"}, "conditions": {"ready": True}}
    about = labelled(**{"kubernetes.io/service-name": "a"})
    for version, endpoints, wakes in ((1, [], False), (2, [ready], True), (3, [], True)):
        woken.clear()
        cache.seen(
            kinds.ENDPOINT_SLICE, "MODIFIED",
            make(kinds.ENDPOINT_SLICE, "s", version, metadata=about, endpoints=endpoints),
        )  # fmt: skip
        assert bool(woken) == wakes


def test_a_pod_is_routable_once_the_deployments_own_service_lists_it_and_not_the_one_for_metrics(
    cache: Cache, make: Make, woken: list[Any]
) -> None:
    def listed(service: str, version: int, ready: bool) -> None:
        about = labelled(**{"kubernetes.io/service-name": service})
        endpoints = [{"targetRef": {"uid": "uid-p"}, "conditions": {"ready": ready}}]
        cache.seen(
            kinds.ENDPOINT_SLICE, None,
            make(kinds.ENDPOINT_SLICE, f"{service}-x", version, metadata=about, endpoints=endpoints),
        )  # fmt: skip

    def routable() -> list[bool]:
        return [pod.routable for pod in cache.snapshot(KEY, 1.0).pods]  # type: ignore[union-attr]

    filled(cache, make)
    cache.seen(kinds.POD, None, make(kinds.POD, "p", metadata=labelled()))
    listed("a", 1, False)
    woken.clear()
    listed("a-metrics", 1, True)
    assert (routable(), woken) == ([False], []), "publishNotReadyAddresses: that one says ready from the beginning"
    listed("a", 2, True)
    assert (routable(), woken) == ([True], [KEY])


def test_a_pod_that_only_has_a_new_version_wakes_nobody(cache: Cache, make: Make, woken: list[Any]) -> None:
    cache.seen(kinds.POD, "ADDED", make(kinds.POD, "p", 1, metadata=labelled()))
    woken.clear()
    cache.seen(kinds.POD, "MODIFIED", make(kinds.POD, "p", 2, metadata=labelled()))
    assert woken == []
    cache.seen(kinds.POD, "MODIFIED", make(kinds.POD, "p", 3, metadata=labelled(), status={"phase": "Running"}))
    assert woken == [KEY]


def test_one_that_was_deleted_does_not_come_back_by_an_older_listing(cache: Cache, make: Make) -> None:
    pod = make(kinds.POD, "p", 5, metadata=labelled())
    cache.seen(kinds.POD, "ADDED", pod)
    cache.seen(kinds.POD, "DELETED", pod)
    cache.seen(kinds.POD, None, pod)
    assert cache.uid(kinds.POD, "ns", "p") is None
    cache.seen(kinds.POD, "ADDED", make(kinds.POD, "p", 9, uid="another", metadata=labelled()))
    assert cache.uid(kinds.POD, "ns", "p") == "another"


def test_the_end_of_an_earlier_object_leaves_its_successor(cache: Cache, make: Make) -> None:
    cache.seen(kinds.POD, "ADDED", make(kinds.POD, "p", 9, uid="new", metadata=labelled()))
    cache.seen(kinds.POD, "DELETED", make(kinds.POD, "p", 8, uid="old", metadata=labelled()))
    assert cache.uid(kinds.POD, "ns", "p") == "new"


def test_a_deployment_that_goes_wakes_whoever_cleans_up(cache: Cache, make: Make, woken: list[Any]) -> None:
    filled(cache, make)
    woken.clear()
    cache.seen(kinds.DEPLOYMENT, "DELETED", make(kinds.DEPLOYMENT, "a"))
    assert set(woken) == {KEY}
    assert cache.snapshot(KEY, 1.0) is None
    assert cache.every() == []


def test_a_page_belongs_to_its_pod_and_goes_with_it(cache: Cache, make: Make) -> None:
    filled(cache, make)
    running = {"phase": "Running", "podIP": "10.0.0.1"}
    pod = make(kinds.POD, "p", metadata=labelled(), status=running)
    cache.seen(kinds.POD, "ADDED", pod)
    (target,) = cache.targets()
    assert (target.key, target.ip, target.ready) == (KEY, "10.0.0.1", False)
    cache.set_page(target.uid, Page(1.0, "loading"))
    assert cache.snapshot(KEY, 1.0).pods[0].page.phase == "loading"  # type: ignore[union-attr]
    cache.seen(
        kinds.POD, "MODIFIED", make(kinds.POD, "p", 2, metadata=labelled(), status={**running, "phase": "Failed"})
    )
    cache.set_page(target.uid, Page(2.0, "ready"))  # its last answer, read while it ended
    assert cache.snapshot(KEY, 1.0).pods[0].page is None  # type: ignore[union-attr]
    cache.seen(kinds.POD, "DELETED", pod)
    assert cache.page(target.uid) is None
    assert cache.targets() == []


def test_a_cordoned_node_wakes_those_that_run_there_and_those_that_wait(
    cache: Cache, make: Make, woken: list[Any], real: Any
) -> None:
    cache.sees_nodes = True
    for name, phase in (("a", "Ready"), ("b", "Pending"), ("c", "Ready")):
        cache.seen(kinds.DEPLOYMENT, None, make(kinds.DEPLOYMENT, name, status={"phase": phase}))
    pod = make(kinds.POD, "p", metadata=labelled(), spec={"nodeName": "node-1"})
    cache.seen(kinds.POD, "ADDED", pod)
    node = real("node")
    cache.seen(kinds.NODE, "ADDED", node)
    woken.clear()
    node["metadata"]["resourceVersion"] = str(int(node["metadata"]["resourceVersion"]) + 1)
    cache.seen(kinds.NODE, "MODIFIED", node)
    assert woken == []  # A heartbeat.
    node["metadata"]["resourceVersion"] = str(int(node["metadata"]["resourceVersion"]) + 1)
    node["spec"]["unschedulable"] = True
    cache.seen(kinds.NODE, "MODIFIED", node)
    assert set(woken) == {("ns", "a"), ("ns", "b")}
    assert [n.usable for n in cache.snapshot(KEY, 1.0).nodes or ()] == [False]  # type: ignore[union-attr]


HISTORY = [
    ("ADDED", 1, "one"), ("MODIFIED", 2, "one"), ("MODIFIED", 3, "one"), ("DELETED", 4, "one"),
    ("ADDED", 5, "two"), ("MODIFIED", 6, "two"), (None, 2, "one"), (None, 6, "two"), (None, 5, "two"),
]  # fmt: skip


@settings(deadline=None)
@given(st.permutations(HISTORY), st.data())
def test_any_order_of_what_happened_ends_in_the_same_cache(order: list[Any], data: Any) -> None:
    # Each kind's watch is in order, but listings and answers to writes come between and repeat what was.
    watch = iter(HISTORY[:6])
    events = [next(watch) if event[0] else event for event in order]
    repeated = data.draw(st.lists(st.sampled_from(HISTORY[6:]), max_size=4))
    cache = Cache(lambda key: None, lambda namespace, spec: None)
    for event, version, uid in [*events, *repeated]:
        raw = {"metadata": {"namespace": "ns", "name": "p", "uid": uid, "resourceVersion": str(version), **labelled()}}
        cache.seen(kinds.SERVICE, event, raw)
    assert cache.version(kinds.SERVICE, "ns", "p") == "6"
    assert cache.uid(kinds.SERVICE, "ns", "p") == "two"
    assert [i for members in cache._by_ref.values() for i in members] == [("Service", "ns", "p")]


def test_a_new_leader_asks_every_page_once_and_counts_no_deadline_from_before(cache: Cache, make: Make) -> None:
    filled(cache, make)
    running = {"phase": "Running", "podIP": "10.0.0.1"}
    about = {**labelled(), "creationTimestamp": "2020-01-01T00:00:00Z"}
    cache.seen(kinds.POD, None, make(kinds.POD, "p", metadata=about, status=running))
    cache.began_to_lead(1e10)
    assert cache.unasked(KEY)
    (pod,) = cache.snapshot(KEY, 1e10 + 1).pods  # type: ignore[union-attr]
    assert (pod.seen_since, pod.created) == (1e10, 1577836800.0)
    assert pod.unread
    assert not cache.asked(pod.uid, known=False), "it did not answer, this time"
    assert not cache.unasked(KEY)
    assert cache.snapshot(KEY, 1e10 + 2).pods[0].unread  # type: ignore[union-attr]
    assert cache.asked(pod.uid)
    assert not cache.asked(pod.uid), "no news"
    assert not cache.snapshot(KEY, 1e10 + 3).pods[0].unread  # type: ignore[union-attr]
    cache.began_to_lead(2e10)
    assert cache.unasked(KEY)


def test_a_deployment_wakes_itself_and_no_other_of_its_source(cache: Cache, make: Make, woken: list[Any]) -> None:
    for name in ("a", "b", "c"):
        cache.seen(kinds.DEPLOYMENT, None, make(kinds.DEPLOYMENT, name, spec={"model": {"source": "s1"}}))
    assert woken == [("ns", "a"), ("ns", "b"), ("ns", "c")]
    woken.clear()
    cache.seen(kinds.DEPLOYMENT, "MODIFIED", make(kinds.DEPLOYMENT, "b", 2, spec={"model": {"source": "s2"}}))
    cache.seen(kinds.DEPLOYMENT, "DELETED", make(kinds.DEPLOYMENT, "c"))
    assert woken == [("ns", "b"), ("ns", "c")]


def test_why_a_source_could_not_be_read_is_known_while_somebody_names_it(cache: Cache, make: Make) -> None:
    cache.seen(kinds.DEPLOYMENT, None, make(kinds.DEPLOYMENT, "a", spec={"model": {"source": "s1"}}))
    ended = {"name": "inspect", "state": {"terminated": {"exitCode": 1, "reason": "Error", "message": "no such claim"}}}
    about = {"labels": {names.MANAGED_BY: names.MANAGER, names.SOURCE: "s1"}}
    status = {"phase": "Failed", "containerStatuses": [ended]}
    pod = make(kinds.POD, "look", metadata=about, status=status)
    cache.seen(kinds.POD, None, pod)
    cache.seen(kinds.POD, "DELETED", pod)
    looking = cache.snapshot(KEY, 1.0).inspecting  # type: ignore[union-attr]
    assert looking is not None
    assert (looking.error, looking.pod) == ("no such claim", None)
    cache.seen(kinds.DEPLOYMENT, "DELETED", make(kinds.DEPLOYMENT, "a", 3))
    cache.seen(kinds.DEPLOYMENT, None, {**make(kinds.DEPLOYMENT, "a", 4, spec={"model": {"source": "s1"}})})
    assert cache._errors == {}


def test_what_is_known_of_a_draft_is_in_its_deployments_corner(cache: Cache, make: Make) -> None:
    spec = {
        "model": {"source": "pvc://models/a"},
        "serving": {"speculativeTokens": 4, "draft": {"source": "pvc://models/small"}},
    }
    cache.seen(kinds.DEPLOYMENT, None, make(kinds.DEPLOYMENT, "a", spec=spec))
    key = draft_key("ns", spec)
    assert key is not None
    found = cache.snapshot(KEY, 1.0)
    assert found is not None
    assert found.inspecting_draft == Inspecting(key)
    cache.seen(kinds.CONFIG_MAP, None, {**build.record("ns", key, INSPECTION), "kind": "ConfigMap"})
    found = cache.snapshot(KEY, 1.0)
    assert found is not None
    assert found.inspecting_draft is not None
    assert found.inspecting_draft.found == INSPECTION
    assert found.inspecting is None or found.inspecting.found is None
    assert all(one.wanted for one in cache.inspected())
