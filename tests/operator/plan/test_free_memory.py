"""CPUs without accelerator.memory: the line is what the replicas find beside what stays on the nodes."""

from dataclasses import replace
from typing import Any

import pytest

from plimsoll.api.budget import SERVER_BYTES
from plimsoll.api.deployment import ModelDeploymentSpec
from plimsoll.api.quantity import parse_quantity
from plimsoll.operator.actions import Apply
from plimsoll.operator.plan import plan
from plimsoll.operator.plan.devices import device_memory
from plimsoll.operator.snapshot import Node
from tests.support.miniature import GIB, Cluster, spec

MIB = 1 << 20
NODE = Node("n1", allocatable={"cpu": 8000, "memory": 8 * GIB, "pods": 110})


def settled(nodes: tuple[Node, ...] = (NODE,), taken: dict[str, int] | None = None, **changes: Any) -> Cluster:
    found = Cluster(spec=spec(accelerator={"resource": "cpu"}, **changes), nodes=nodes, taken=taken or {})
    found.settle()
    return found


def request(cluster: Cluster) -> int:
    """Bytes that a pod asks the scheduler for."""
    (one,) = (one for (kind, _), one in cluster.children.items() if kind == "ReplicaSet")
    return int(parse_quantity(one["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["memory"]))


@pytest.mark.parametrize("stays", [0, 70 * MIB, 3 * GIB + 12345])
def test_a_pod_fits_beside_what_stays_on_its_node(stays: int) -> None:
    cluster = settled(taken={"n1": stays})
    free = 8 * GIB - stays
    assert free - MIB < request(cluster) <= free
    assert cluster.status["budget"]["perDevice"]["total"] == request(cluster) - SERVER_BYTES


@pytest.mark.parametrize(
    ("sizes", "replicas", "wanted"),
    [((8, 4), 1, 8), ((8, 4), 2, 4), ((8, 4), 3, 4), ((8, 3), 3, 3), ((8,), 4, 2), ((8, 4), 0, 8)],
)
def test_all_replicas_find_a_place(sizes: tuple[int, ...], replicas: int, wanted: int) -> None:
    nodes = tuple(
        replace(NODE, name=f"n{index}", allocatable={**NODE.allocatable, "memory": size * GIB})
        for index, size in enumerate(sizes)
    )
    cluster = settled(nodes, replicas=replicas)
    assert request(cluster) == wanted * GIB
    assert sum(size * GIB // request(cluster) for size in sizes) >= replicas


@pytest.mark.parametrize(("tensor", "ranks"), [("auto", 1), (1, 1), (2, 2), (3, 3)])
def test_ranks_of_a_pod_share_what_is_free_on_a_node(tensor: int | str, ranks: int) -> None:
    asked = ModelDeploymentSpec.model_validate(spec(accelerator={"resource": "cpu"}, parallelism={"tensor": tensor}))
    found = device_memory(asked, (NODE,), {"n1": GIB})
    assert found.total is not None
    assert found.total == (7 * GIB - SERVER_BYTES) // ranks
    assert ("shared by" in found.where) == (ranks > 1)


def test_a_full_node_is_refused_with_what_it_has_until_there_is_room() -> None:
    cluster = settled(taken={"n1": 8 * GIB - 500 * MIB})
    accepted = cluster.condition("Accepted")
    assert accepted["reason"] == "DoesNotFit"
    assert "free beside pods that stay there (7.5 GiB)" in accepted["message"]
    assert cluster.look().again_in == 30.0
    cluster.taken = {}
    cluster.settle()
    assert cluster.condition("Ready")["status"] == "True"


def test_what_comes_to_the_node_later_changes_no_pod() -> None:
    cluster = settled(taken={"n1": GIB})
    before, writes = request(cluster), cluster.writes
    cluster.taken = {"n1": 6 * GIB}
    for _ in range(5):
        cluster.now += 60
        assert not cluster.look().needs_usage
        assert not [one for one in cluster.act().actions if isinstance(one, Apply)]
    assert (request(cluster), cluster.writes) == (before, writes)
    assert cluster.condition("Ready")["status"] == "True"


def test_one_reading_of_the_nodes_both_sizes_a_new_revision_and_finds_a_place_for_it() -> None:
    cluster = settled()
    cluster.change(precision="bfloat16")
    first = plan(cluster.snapshot(), cluster.settings, cluster.version)
    assert (first.needs_usage, first.status["phase"]) == (True, "Inspecting")
    informed = replace(cluster.snapshot(cluster.room), taken={})
    second = plan(informed, cluster.settings, cluster.version)
    assert not second.incomplete
    applied = [(one.object["kind"], one.why) for one in second.actions if isinstance(one, Apply)]
    # The Service first: of two pods it gives no requests to one that is not ready.
    assert applied == [("Service", "put back"), ("ReplicaSet", "a new revision")]


@pytest.mark.parametrize(("zone", "wanted"), [("a", 4), ("b", 64)])
def test_a_node_that_the_users_affinity_excludes_does_not_count(zone: str, wanted: int) -> None:
    nodes = tuple(
        replace(NODE, name=name, labels={"zone": name}, allocatable={**NODE.allocatable, "memory": size * GIB})
        for name, size in (("a", 4), ("b", 64))
    )
    cluster = settled(nodes, pod={"affinity": in_zone(zone)})
    assert request(cluster) == wanted * GIB


def test_an_affinity_that_no_node_matches_is_named() -> None:
    cluster = settled(pod={"affinity": in_zone("nowhere")})
    assert "no node matches spec.pod.affinity" in cluster.condition("Accepted")["message"]


def in_zone(zone: str) -> dict[str, Any]:
    term = {"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}


def test_a_pod_of_the_new_revision_that_waits_takes_the_room_that_is_counted() -> None:
    cluster = Cluster(devices=2)
    cluster.settle()
    cluster.change(precision="bfloat16")
    cluster.act()
    assert cluster.condition("Progressing")["reason"] == "Surging"
    cluster.devices = 1
    cluster.others_move()
    cluster.act()
    assert cluster.condition("Progressing")["reason"] == "Replacing"
