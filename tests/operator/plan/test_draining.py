"""`kubectl drain` comes to an end, and takes a service away only where nothing else is left to do."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from plimsoll.operator import build
from plimsoll.operator.plan.evacuation import HOPE
from plimsoll.operator.snapshot import Node
from tests.support.gitops import kstatus
from tests.support.miniature import GIB, Cluster, spec

HERE = Node("n1", allocatable={"cpu": 8000, "memory": 16 * GIB, "pods": 110})
CORDONED = replace(HERE, usable=False, cordoned=True)
THERE = replace(HERE, name="n2")


def serving(**changes: Any) -> Cluster:
    cluster = Cluster(spec=spec(**changes), nodes=(HERE, THERE))
    cluster.settle(25)
    return cluster


def limit(cluster: Cluster) -> Mapping[str, int]:
    found = cluster.children["PodDisruptionBudget", "demo"]["spec"]
    return {key: found[key] for key in found if key.endswith("vailable")}


def may_evict(cluster: Cluster) -> bool:
    """As the disruption controller counts: expected are the pods that ReplicaSets are told to have."""
    expected = sum(one.replicas for one in cluster.sets.values())
    healthy = sum(pod.ready and not pod.deleting for pod in cluster.pods)
    [(kind, number)] = limit(cluster).items()
    return healthy - (number if kind == "minAvailable" else expected - number) > 0


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("why", ["unschedulable", "stuck"])
def test_a_successor_that_cannot_serve_ends_the_wait(replicas: int, why: str) -> None:
    cluster = serving(replicas=replicas)
    old = {pod.name for pod in cluster.pods}
    cluster.nodes = (CORDONED, THERE)
    cluster.act()
    assert sum(one.replicas for one in cluster.sets.values()) > replicas
    cluster.others_move()
    # Room was counted, and a volume is on the other node alone.
    trouble: dict[str, Any] = (
        {"unschedulable": "1 node(s) had volume node affinity conflict", "node": None}
        if why == "unschedulable"
        else {"stuck": True, "last_event": "Multi-Attach error for volume", "node": "n2"}
    )
    begun = cluster.now
    looks = []
    while cluster.now < begun + HOPE + 5:
        cluster.pods = [pod if pod.name in old else replace(pod, ready=False, routable=False, **trouble)
                        for pod in cluster.pods]  # fmt: skip
        looks.append((cluster.now - begun, cluster.act().again_in, may_evict(cluster)))
        cluster.now += 5
    assert not any(free for at, _, free in looks if at < HOPE - 5), "there was hope"
    assert all(free or (again is not None and again <= HOPE + 1) for _, again, free in looks), "nobody looks again"
    assert looks[-1][2], "the drain hangs"
    assert cluster.condition("Ready")["status"] == "True"


def test_a_node_that_stays_cordoned_is_no_rollout_without_end() -> None:
    cluster = serving()
    cluster.nodes = (CORDONED, THERE)
    cluster.settle(25)
    assert cluster.status["readyReplicas"] == 2
    assert (cluster.status["phase"], kstatus(1, cluster.status)) == ("Ready", "Current")
    writes = cluster.writes
    cluster.act()
    assert cluster.writes == writes
    cluster.nodes = (HERE, THERE)
    cluster.settle(25)
    assert cluster.status["readyReplicas"] == 1


def test_after_a_failed_rollout_what_was_gone_back_to_is_evacuated_as_well() -> None:
    cluster = serving()
    cluster.change(context={"maxLength": 1024})
    cluster.bad = {build.revision(cluster.spec)}
    cluster.settle(25)
    assert cluster.condition("Progressing")["reason"] == "RolloutFailed"
    first = {pod.name for pod in cluster.pods if pod.ready}
    cluster.nodes = (CORDONED, THERE)
    cluster.settle(10)
    assert sum(pod.ready for pod in cluster.pods) == 2
    cluster.pods = [replace(pod, node="n2") if pod.ready and pod.name not in first else pod for pod in cluster.pods]
    cluster.act()
    assert may_evict(cluster)
    assert cluster.condition("Progressing")["reason"] == "RolloutFailed"


REFUSED = {
    "does not fit": {"accelerator": {"resource": "cpu", "memory": "300Mi"}},
    "is wrong": {"context": {"maxLength": 999_999_999}},
    "is not allowed": {"model": {"source": "oci://example.org/model@sha256:" + "0" * 64}},
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_serves_a_refused_spec_is_scaled_reachable_and_leaves_a_node(why: str) -> None:
    cluster = serving(replicas=2)
    cluster.settings = cluster.settings.model_copy(update={"allowed_sources": ("pvc://*",)})
    cluster.change(**REFUSED[why])
    cluster.settle(25)
    assert cluster.status["phase"] == "Refused"
    assert cluster.status["readyReplicas"] == 2
    del cluster.children["Service", "demo"]
    cluster.change(replicas=3)
    cluster.settle(25)
    assert ("Service", "demo") in cluster.children
    assert cluster.status["readyReplicas"] == 3
    cluster.nodes = (CORDONED, THERE)
    cluster.settle(25)
    assert may_evict(cluster)
    cluster.change(replicas=1)
    cluster.settle(25)
    assert may_evict(cluster), "the only one has no successor that anybody could make"
    writes = cluster.writes
    cluster.settle(5)
    assert cluster.writes == writes
    cluster.change(replicas=0)
    cluster.settle(25)
    assert not cluster.pods
    assert cluster.status["phase"] == "Refused"


def test_a_rollout_that_a_refusal_caught_half_way_is_left_as_it_is_until_nothing_is_wanted() -> None:
    cluster = serving(replicas=3)
    cluster.change(context={"maxLength": 1024})
    while len([one for one in cluster.sets.values() if one.replicas]) < 2:
        cluster.act()
        cluster.others_move()
    told = {name: one.replicas for name, one in cluster.sets.items()}
    cluster.change(accelerator={"resource": "cpu", "memory": "300Mi"})
    cluster.settle(25)
    assert {name: one.replicas for name, one in cluster.sets.items()} == told
    cluster.change(replicas=0)
    cluster.settle(25)
    assert not cluster.pods
