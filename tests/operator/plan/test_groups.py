"""Replicas that are groups of pods: the planner against a cluster in miniature."""

from typing import Any

from plimsoll.operator import names
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
