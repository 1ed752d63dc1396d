"""Replicas that are groups of pods: the planner against a cluster in miniature."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from plimsoll.operator import build, names
from plimsoll.operator.plan.groups import domains
from plimsoll.operator.snapshot import Container, Node, Page, Pod, Shape
from tests.support.miniature import Cluster, spec


def groups(nodes: int = 2, **changes: Any) -> dict[str, Any]:
    wish = {"parallelism": {"nodes": nodes, "tensor": nodes}, "accelerator": {"resource": "cpu", "memory": "1Gi"}}
    return spec(**wish, **changes)


def test_a_group_is_one_replica_from_nothing_to_ready() -> None:
    cluster = Cluster(spec=groups())
    cluster.settle()
    assert cluster.status["phase"] == "Ready", cluster.status
    assert (cluster.status["ready"], cluster.status["replicas"], cluster.status["readyReplicas"]) == ("1/1", 1, 1)
    [name] = cluster.groups
    [revision] = cluster.sets.values()
    assert name == f"{revision.name}-g0"
    assert sorted(pod.name for pod in cluster.pods) == [f"{name}-0", f"{name}-1"]
    assert cluster.children[("ReplicaSet", revision.name)]["spec"]["replicas"] == 0
    assert cluster.children[("Service", "demo")]["spec"]["selector"][names.INDEX] == "0"
    assert cluster.status["selector"].endswith(f"{names.INDEX}=0")
    writes = cluster.writes
    for _ in range(20):
        cluster.now += 60
        cluster.act()
    assert cluster.writes == writes, "nothing is left to do"


def test_groups_are_made_one_at_a_time_while_devices_are_short() -> None:
    cluster = Cluster(spec=groups(replicas=2), devices=3)
    half: set[str] = set()
    for choice in range(80):
        cluster.act()
        half |= {name for name in cluster.groups if cluster.placed(name) == 1}
        cluster.others_move(choice)
    assert len(half) == 1, "the one that lacks a device; none beside it took the device that it needs"
    assert cluster.status["ready"] == "1/2"
    [late] = [name for name in cluster.groups if cluster.placed(name) == 1]
    assert f"pod {late}-1 of group {late}: 0/1" in cluster.condition("Ready")["message"]
    assert cluster.condition("Ready")["reason"] == "Unschedulable"
    cluster.devices = 4
    cluster.settle()
    assert cluster.status["ready"] == "2/2"


def test_where_room_for_all_is_seen_no_group_waits_for_another() -> None:
    cluster = Cluster(spec=groups(replicas=3), devices=8)
    cluster.settle()
    cluster.change(context={"maxLength": 1024}, rollout={"strategy": "Auto"})
    cluster.settle()
    assert cluster.status["ready"] == "3/3"
    assert {pod.revision for pod in cluster.pods} == {build.revision(cluster.spec)}
    assert len(cluster.groups) == 3
    policies = {name for kind, name in cluster.children if kind == "NetworkPolicy" and name != "demo"}
    assert policies == {"plimsoll-inspect", *cluster.groups}, "those of groups that are gone went after them"


def serving(nodes: int = 2, **changes: Any) -> Cluster:
    """A group over nodes n0, n1 ... of a cluster that has another node."""
    cluster = Cluster(spec=groups(nodes, **changes), devices=20)
    cluster.settle()
    assert cluster.nodes is not None
    cluster.nodes = tuple(replace(cluster.nodes[0], name=f"n{at}") for at in range(nodes + 1))
    cluster.pods = [replace(pod, node=f"n{pod.index}") for pod in cluster.pods]
    cluster.act()
    assert cluster.status["phase"] == "Ready"
    return cluster


def lose(cluster: Cluster, node: str) -> None:
    """The node is lost, and with it its pods; others of the group notice at once."""
    assert cluster.nodes is not None
    dead = {"usable": False, "not_ready": "Kubelet stopped posting", "not_ready_at": cluster.now}
    cluster.nodes = tuple(replace(one, **dead) if one.name == node else one for one in cluster.nodes)
    hit = {pod.owner for pod in cluster.pods if pod.node == node}
    cluster.pods = [
        replace(pod, ready=False, routable=False, unready_at=cluster.now) if pod.owner in hit else pod
        for pod in cluster.pods
    ]


def test_a_group_that_loses_a_pod_with_its_node_is_named_and_replaced_at_once() -> None:
    cluster = serving()
    [old] = cluster.groups
    lose(cluster, "n1")
    cluster.act()
    degraded = cluster.condition("Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "NodeNotReady")
    assert f"pod {old}-1 of group {old}: its node n1 is NotReady" in degraded["message"]
    assert old not in cluster.groups
    # The garbage collector has come to one pod and not to the other.
    cluster.pods = [replace(pod, deleting=pod.index == "1") for pod in cluster.pods]
    cluster.act()
    assert f"pod {old}-1 of group {old}: its node n1" in cluster.condition("Degraded")["message"]
    cluster.pods = [replace(pod, deleting=True) for pod in cluster.pods]
    # The pod on the dead node stays, and holds its name: nothing waits for it.
    held = next(pod for pod in cluster.pods if pod.name == f"{old}-1")
    for choice in range(40):
        cluster.others_move(choice)
        cluster.pods = [pod for pod in cluster.pods if pod.name != held.name]
        cluster.pods.append(replace(held, deleting=True, routable=False, ends_by=held.created + 30))
        cluster.act()
    [new] = cluster.groups
    assert new == old.removesuffix("0") + "1"
    assert cluster.status["phase"] == "Ready", cluster.status
    assert cluster.status["readyReplicas"] == 1


def test_a_group_that_starts_on_a_node_that_just_came_up_is_not_taken_for_lost() -> None:
    cluster = serving()
    [name] = cluster.groups
    lose(cluster, "n1")
    assert cluster.nodes is not None
    before = min(pod.created for pod in cluster.pods) - 1
    known = cluster.nodes
    for since in (0.0, before):
        # The watch of nodes lags behind that of pods.
        cluster.nodes = tuple(replace(one, not_ready_at=since) if one.not_ready else one for one in known)
        cluster.act()
        assert list(cluster.groups) == [name]


def test_a_group_whose_leader_s_node_is_lost_goes_where_others_take_it_whole_and_else_waits() -> None:
    cluster = serving()
    [old] = cluster.groups
    cluster.devices = 2
    lose(cluster, "n0")
    cluster.act()
    assert list(cluster.groups) == [old], "its pods may be well, and nowhere is room for others"
    cluster.devices = 3
    cluster.act()
    assert list(cluster.groups) != [old], "one device is free and the follower's own will be"


def test_a_drained_node_gets_a_second_group_before_the_first_may_lose_a_pod() -> None:
    cluster = serving()
    [old] = cluster.groups
    assert cluster.nodes is not None
    pdb = cluster.children[("PodDisruptionBudget", "demo")]["spec"]
    assert pdb["minAvailable"] == 3, "neither pod of the only group may go; of two groups one pod"
    cluster.nodes = tuple(
        replace(one, usable=False, cordoned=True) if one.name == "n1" else one for one in cluster.nodes
    )
    cluster.settle(10)
    assert len(cluster.groups) == 2
    assert sum(pod.ready for pod in cluster.pods) == 4
    # The drain takes the follower; the group without it is the one that is too many.
    cluster.pods = [
        replace(pod, deleting=True, routable=False) if pod.name == f"{old}-1" else pod for pod in cluster.pods
    ]
    cluster.settle()
    assert old not in cluster.groups
    assert cluster.status["phase"] == "Ready", cluster.status


def test_single_pods_get_their_label_before_the_service_chooses_by_it() -> None:
    cluster = Cluster(devices=6)
    cluster.settle()
    # As an earlier operator made them.
    cluster.pods = [replace(pod, index="") for pod in cluster.pods]
    cluster.act()
    assert not cluster.pods[0].index, "where there are no groups, nothing needs it"
    cluster.change(parallelism={"nodes": 2, "tensor": 2}, accelerator={"resource": "cpu", "memory": "1Gi"})
    for choice in range(80):
        cluster.act()
        chooses = cluster.children[("Service", "demo")]["spec"]["selector"].get(names.INDEX)
        served = [pod for pod in cluster.pods if pod.routable and chooses in (None, pod.index)]
        assert served, "a request has nowhere to go"
        followers = [pod for pod in cluster.pods if pod.group and pod.index != "0"]
        assert chooses == "0" or not followers, "a follower would be sent requests"
        cluster.others_move(choice)
    assert cluster.status["phase"] == "Ready"
    assert cluster.status["selector"].endswith(f"{names.INDEX}=0")
    cluster.change(parallelism={})
    for choice in range(80):
        cluster.act()
        chooses = cluster.children[("Service", "demo")]["spec"]["selector"].get(names.INDEX)
        assert [pod for pod in cluster.pods if pod.routable and chooses in (None, pod.index)]
        assert chooses == "0" or not [pod for pod in cluster.pods if pod.group]
        cluster.others_move(choice)
    assert not cluster.groups
    assert cluster.status["phase"] == "Ready"
    assert names.INDEX not in cluster.status["selector"]


def test_scaled_to_zero_and_back_failed_and_reverted_as_a_pod() -> None:
    cluster = serving()
    cluster.change(replicas=0)
    cluster.settle()
    assert not cluster.groups
    assert cluster.status["phase"] == "Stopped"
    cluster.change(replicas=2)
    cluster.settle()
    assert cluster.status["ready"] == "2/2"
    good = {pod.revision for pod in cluster.pods}
    cluster.change(context={"maxLength": 1024})
    cluster.bad = {build.revision(cluster.spec)}
    cluster.settle()
    assert cluster.condition("Progressing")["reason"] == "RolloutFailed"
    assert "the checkpoint is damaged" in cluster.condition("Degraded")["message"]
    assert {pod.revision for pod in cluster.pods} == good
    assert cluster.status["readyReplicas"] == 2
    cluster.change(context={})
    cluster.settle()
    assert cluster.status["phase"] == "Ready"


def test_a_follower_in_trouble_is_what_the_group_is_said_to_wait_for() -> None:
    cluster = Cluster(spec=groups())
    cluster.settle()
    [name] = cluster.groups
    leader, follower = (next(pod for pod in cluster.pods if pod.name == f"{name}-{at}") for at in (0, 1))
    loading = Page(cluster.now, "loading", waiting_for=(f"{name}-1",))
    pull = Container("server", reason="ImagePullBackOff", message="not found")
    cases: list[tuple[Any, str, str]] = [
        ({"containers": (pull,)}, "ImagePull", "not found"),
        ({"node": None, "unschedulable": "0/3 nodes are available"}, "Unschedulable", "0/3 nodes"),
        ({"page": replace(loading, phase="downloading", waiting_for=())}, "NotReady", "is downloading"),
    ]
    for changes, reason, words in cases:
        other = {"ready": False, "routable": False}
        cluster.pods = [replace(leader, **other, page=loading), replace(follower, **other, **changes)]
        cluster.act()
        found = cluster.condition("Ready")
        assert found["reason"] == reason, found
        assert f"pod {name}-1 of group {name}" in found["message"]
        assert words in found["message"]


def test_a_group_is_late_only_when_none_of_its_pods_moves() -> None:
    cluster = Cluster(spec=groups(rollout={"progressDeadline": "60s"}))
    cluster.settle()
    [name] = cluster.groups
    cluster.pods = [
        replace(pod, ready=False, routable=False, page=Page(cluster.now, "loading")) for pod in cluster.pods
    ]
    moved = cluster.now + 50
    cluster.pods[1] = replace(cluster.pods[1], page=Page(moved, "loading"))
    cluster.now += 100
    cluster.act()
    assert cluster.condition("Degraded")["status"] == "False"
    cluster.now += 30
    cluster.act()
    assert cluster.condition("Degraded")["reason"] == "Stalled"
    assert f"of group {name}" in cluster.condition("Degraded")["message"]


def test_a_deleted_secret_is_made_again_when_a_pod_waits_for_it() -> None:
    cluster = Cluster(spec=groups())
    cluster.settle()
    [revision] = cluster.sets.values()
    cluster.keys.clear()
    assert not cluster.act().actions, "nothing reads Secrets"
    waits = f'MountVolume.SetUp failed for volume "group" : secret "{revision.name}" not found'
    cluster.pods[0] = replace(cluster.pods[0], ready=False, routable=False, stuck=True, last_event=waits)
    cluster.act()
    assert cluster.keys == {revision.name}


@pytest.mark.parametrize("pods", [0, 1, 5])
def test_a_group_that_somebody_has_scaled_gets_its_pods_back(pods: int) -> None:
    cluster = Cluster(spec=groups(2))
    cluster.settle()
    [name] = cluster.groups
    cluster.groups[name] = replace(cluster.groups[name], pods=pods)
    cluster.settle(10)
    assert cluster.groups[name].pods == 2
    assert cluster.status["ready"] == "1/1"


def test_a_revision_s_record_that_somebody_deletes_takes_no_group_along() -> None:
    cluster = Cluster(spec=groups())
    cluster.settle()
    before = dict(cluster.groups)
    [revision] = cluster.sets
    del cluster.sets[revision], cluster.children[("ReplicaSet", revision)]
    cluster.settle(10)
    assert cluster.groups == before
    assert cluster.status["phase"] == "Ready"


def test_pods_that_cannot_be_created_are_explained_by_the_group_s_events() -> None:
    cluster = Cluster(spec=groups())
    cluster.settle()
    [name] = cluster.groups
    cluster.pods = [replace(cluster.pods[0], ready=False, routable=False)]
    cluster.now += 60
    assert cluster.look().needs_events
    words = 'create Pod failed error: pods "x" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1'
    cluster.groups[name] = replace(cluster.groups[name], last_event=words)
    cluster.act()
    assert cluster.condition("Ready")["reason"] == "PodsRefused"
    assert "exceeded quota" in cluster.condition("Ready")["message"]


def test_names_fit_for_every_deployment_s_name_and_stay_apart() -> None:
    long = "a" * 39
    found = {names.group(f"{long}{last}", "0123456789", 9999) for last in "bc"}
    assert len(found) == 2
    assert all(len(name) <= 52 and len(f"{name}-63") <= 63 for name in found)
    assert names.group("demo", "0123456789", 0) == "demo-0123456789-g0"


def test_one_topology_value_holds_a_group_and_is_chosen_by_its_room() -> None:
    nodes = tuple(Node(f"n{at}", labels={"rack": f"r{at // 2}"}) for at in range(6))
    free = {"n0": 1, "n1": 0, "n2": 1, "n3": 1, "n4": 3, "n5": 1}

    def room(template: Mapping[str, Any], /, among: Any = None) -> int:
        return sum(free[name] for name in among)

    there = Pod("demo-x-g0-0", group="demo-x-g0", node="n5")
    snapshot = replace(Cluster(nodes=nodes).snapshot(), nodes=nodes, pods=(there,))
    assert domains(snapshot, Shape(2, "rack"), room, {}) == [("r1", 1), ("r2", 2)]
    assert domains(snapshot, Shape(2, "rack", apart=True), room, {}) == [("r1", 1)]
