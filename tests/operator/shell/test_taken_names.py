"""Objects of somebody else that have a name which one of ours would have: they are left alone, and named."""

from typing import Any

import pytest

from plimsoll.operator import kinds, names
from plimsoll.operator.actions import Apply, Plan
from plimsoll.operator.cluster import Cluster, ConflictError, NameTakenError
from plimsoll.operator.kinds import BY_NAME
from plimsoll.operator.ownership import check_ours
from plimsoll.operator.plan.conditions import Condition, written
from plimsoll.operator.watch_cache import Cache
from tests.operator.shell.test_reconcile import KEY, MINE, World

OWNER = {"kind": "ModelDeployment", "name": "a", "uid": "uid-a", "controller": True}
THEIRS = {"labels": {"app": "web"}}
PATH = kinds.SERVICE.path("ns", "a")


def wanted(kind: str = "Service", **about: Any) -> dict[str, Any]:
    meta = {"name": "a", "namespace": "ns", **MINE, "ownerReferences": [OWNER], **about}
    return {"apiVersion": BY_NAME[kind].api_version, "kind": kind, "metadata": meta, "spec": {"x": 1}}


def foreign(kind: str = "Service", **about: Any) -> dict[str, Any]:
    found = wanted(kind)
    return {**found, "metadata": {"name": "a", "namespace": "ns", **THEIRS, **about}, "spec": {"x": 2}}


def plan(*bodies: dict[str, Any], ready: str = "False") -> Plan:
    conditions = [
        Condition("Ready", "True" if ready == "True" else "False", "Observed", "as the pods are"),
        Condition("Degraded", "False", "AsExpected"),
        Condition("Reconciling", "True", "Scaling"),
    ]
    status = {"observedGeneration": 1, "phase": "Pending", "conditions": written(conditions, (), 1, 0.0)}
    return Plan(actions=tuple(Apply(body) for body in bodies), status=status)


@pytest.fixture
def world(api: Any, cluster: Cluster, cache: Cache, metrics: Any, make: Any) -> World:
    return World(api, cluster, cache, metrics, make)


def conditions(world: World) -> dict[str, tuple[str, str]]:
    status = world.api.objects[kinds.DEPLOYMENT.path(*KEY)]["status"]
    return {one["type"]: (one["status"], one["reason"]) for one in status["conditions"]}


def test_what_is_new_is_made_by_one_request(world: World) -> None:
    before = len(world.api.requests)
    world.work(Plan(actions=(Apply(wanted()),)))
    assert [verb for verb, _ in world.api.requests[before:]] == ["PATCH"]
    assert world.api.objects[PATH]["metadata"]["ownerReferences"] == [OWNER]


@pytest.mark.parametrize("kind", ["Service", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor", "Job", "ReplicaSet"])
def test_somebody_elses_object_of_that_name_stays_as_it_is_and_is_named(world: World, kind: str) -> None:
    before = dict(world.api.put(BY_NAME[kind], foreign(kind)))
    for _ in range(3):
        world.now += 1000
        writes = world.work(plan(wanted(kind)))
        assert world.api.objects[BY_NAME[kind].path("ns", "a")] == before
    assert writes == [("PATCH", BY_NAME[kind].path("ns", "a"))], "it tries again, and has nothing new to say"
    assert conditions(world) == {
        "Ready": ("False", "NameTaken"), "Degraded": ("True", "NameTaken"), "Stalled": ("True", "NameTaken"),
    }  # fmt: skip
    message = world.api.objects[kinds.DEPLOYMENT.path(*KEY)]["status"]["message"]
    assert f"{kind} a" in message
    assert f"rename the ModelDeployment, or remove that {kind}" in message
    (event,) = world.api.under(kinds.EVENT.path("ns"))
    assert (event["reason"], event["count"]) == ("NameTaken", 1)


def test_once_it_is_removed_ours_is_made_and_nothing_is_stuck_any_more(world: World) -> None:
    world.api.put(kinds.SERVICE, foreign())
    world.work(plan(wanted()))
    del world.api.objects[PATH]
    world.now += 1000
    world.work(plan(wanted()))
    assert world.api.objects[PATH]["metadata"]["ownerReferences"] == [OWNER]
    assert conditions(world) == {
        "Ready": ("False", "Observed"), "Degraded": ("False", "AsExpected"), "Reconciling": ("True", "Scaling"),
    }  # fmt: skip


def test_another_deployments_object_is_left_to_it(world: World) -> None:
    others = {"labels": {names.DEPLOYMENT: "b", names.MANAGED_BY: names.MANAGER}}
    owner = {**OWNER, "name": "b", "uid": "uid-b"}
    before = world.api.put(kinds.SERVICE, foreign(**others, ownerReferences=[owner]))
    world.cache.seen(kinds.SERVICE, None, before)
    world.work(plan(wanted()))
    assert world.api.objects[PATH] == before
    assert "(of ModelDeployment b)" in world.api.objects[kinds.DEPLOYMENT.path(*KEY)]["status"]["message"]


def test_replicas_that_serve_are_ready_whatever_has_the_name_of_a_monitor(world: World) -> None:
    world.api.put(kinds.POD_MONITOR, foreign("PodMonitor"))
    world.work(plan(wanted("PodMonitor"), ready="True"))
    assert conditions(world) == {
        "Ready": ("True", "Observed"), "Degraded": ("True", "NameTaken"), "Stalled": ("True", "NameTaken"),
    }  # fmt: skip


def test_no_pod_is_made_that_anothers_policy_would_have_to_guard(world: World) -> None:
    world.api.put(kinds.POLICY, foreign("NetworkPolicy"))
    world.work(plan(wanted("NetworkPolicy"), wanted("ReplicaSet"), wanted("Service")))
    assert kinds.REPLICA_SET.path("ns", "a") not in world.api.objects
    assert PATH in world.api.objects


def test_an_answer_that_was_lost_is_no_foreign_object(world: World) -> None:
    world.api.faults = ["lost"]
    world.work(plan(wanted()))
    assert world.errors() == {}
    assert conditions(world)["Ready"] == ("False", "Observed")
    assert world.cache.uid(kinds.SERVICE, "ns", "a") == world.api.objects[PATH]["metadata"]["uid"]


def test_ours_without_its_labels_is_put_right(world: World) -> None:
    """Watches show it no more, and so it looks like something that is not there."""
    world.api.put(kinds.SERVICE, foreign(ownerReferences=[OWNER]))
    world.work(plan(wanted()))
    found = world.api.objects[PATH]
    assert (found["metadata"]["labels"], found["spec"]) == ({**MINE["labels"], "app": "web"}, {"x": 1})


def test_what_came_and_went_meanwhile_is_tried_again(world: World) -> None:
    world.api.faults = [(409, {})]
    world.work(plan(wanted()))
    assert world.errors() == {"Conflict": 1}
    assert "status" not in world.api.objects[kinds.DEPLOYMENT.path(*KEY)]


def test_what_goes_with_an_earlier_deployment_of_the_name_is_waited_for() -> None:
    earlier = wanted(ownerReferences=[{**OWNER, "uid": "uid-before"}])
    with pytest.raises(ConflictError, match="an earlier ModelDeployment a"):
        check_ours(wanted(), earlier)


def test_what_a_deleted_deployment_left_behind_on_purpose_is_taken_up_again() -> None:
    check_ours(wanted(), wanted(ownerReferences=[]))


@pytest.mark.parametrize(
    "about",
    [
        {"labels": {names.MANAGED_BY: names.MANAGER, names.DEPLOYMENT: "b"}, "ownerReferences": []},
        {"labels": {names.MANAGED_BY: "Helm", names.DEPLOYMENT: "a"}, "ownerReferences": []},
        {"ownerReferences": [{**OWNER, "kind": "Deployment", "uid": "another"}]},
        {"labels": {}, "ownerReferences": [{**OWNER, "controller": False}]},
    ],
)
def test_labels_alone_or_an_owner_that_does_not_control_are_no_proof(about: dict[str, Any]) -> None:
    with pytest.raises(NameTakenError, match="Service a"):
        check_ours(wanted(), wanted(**about))


def test_what_belongs_to_nobody_is_told_by_its_labels() -> None:
    shared = wanted("NetworkPolicy", ownerReferences=[], labels={names.MANAGED_BY: names.MANAGER})
    check_ours(shared, shared)
    with pytest.raises(NameTakenError, match=r"left as it is: remove that NetworkPolicy$"):
        check_ours(shared, foreign("NetworkPolicy"))
