"""Free places, counted as the scheduler counts them."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.operator.plan.capacity import free_slots, need_of, tolerates
from plimsoll.operator.snapshot import Node
from tests.support.built import MINIMAL, replica_set

GPU = "nvidia.com/gpu"
RESOURCES = ("cpu", "memory", "pods", GPU)
amounts = st.fixed_dictionaries({}, optional={name: st.integers(0, 12) for name in RESOURCES})
needs = st.fixed_dictionaries({"pods": st.just(1)}, optional={n: st.integers(0, 4) for n in RESOURCES if n != "pods"})
TAINTS = [
    {"key": "gpu", "value": "yes", "effect": "NoSchedule"},
    {"key": "gone", "value": "", "effect": "NoExecute"},
    {"key": "rather-not", "value": "", "effect": "PreferNoSchedule"},
]
TOLERATIONS: list[dict[str, Any]] = [
    {"operator": "Exists"},
    {"key": "gpu", "operator": "Exists"},
    {"key": "gpu", "value": "yes"},
    {"key": "gpu", "operator": "Equal", "value": "no"},
    {"key": "gone", "operator": "Exists", "effect": "NoSchedule"},
    {"key": "gone", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5},
    {"key": "gone"},
]
tolerations = st.lists(st.sampled_from(TOLERATIONS), max_size=3)
nodes = st.builds(
    Node,
    name=st.sampled_from(["a", "b", "c"]),
    labels=st.dictionaries(st.sampled_from(["pool", "zone"]), st.sampled_from(["x", "y"])),
    taints=st.lists(st.sampled_from(TAINTS), max_size=2).map(tuple),
    usable=st.booleans(),
    allocatable=amounts,
)
clusters = st.lists(nodes, max_size=3, unique_by=lambda node: node.name)
selectors = st.dictionaries(st.sampled_from(["pool", "zone"]), st.sampled_from(["x", "y"]), max_size=1)
uses = st.dictionaries(st.sampled_from(["a", "b", "c"]), amounts)


def slots(there: list[Node], used: Any, need: Any, selector: Any = None, tolerated: Any = ()) -> int:
    return free_slots(there, used, need, {"nodeSelector": selector or {}, "tolerations": tolerated})


@given(clusters, uses, needs, selectors, tolerations)
def test_as_many_fit_as_can_be_placed_one_by_one(
    there: list[Node], used: dict[str, Any], need: dict[str, int], selector: dict[str, str], tolerated: list[Any]
) -> None:
    taken = {node.name: dict(used.get(node.name, {})) for node in there}
    placed = 0
    while any(place(node, taken[node.name], need, selector, tolerated) for node in there):
        placed += 1
    assert slots(there, used, need, selector, tolerated) == placed


def place(node: Node, taken: dict[str, int], need: dict[str, int], selector: Any, tolerated: list[Any]) -> bool:
    """The scheduler's filters for one pod, and its binding."""
    if not node.usable or not selector.items() <= node.labels.items() or not tolerates(node.taints, tolerated):
        return False
    if any(
        count and taken.get(resource, 0) + count > node.allocatable.get(resource, 0) for resource, count in need.items()
    ):
        return False
    for resource, count in need.items():
        taken[resource] = taken.get(resource, 0) + count
    return True


@given(clusters, uses, needs, selectors, tolerations)
def test_a_node_that_takes_no_pods_gives_no_places(
    there: list[Node], used: Any, need: Any, selector: Any, tolerated: Any
) -> None:
    away = [replace(node, usable=False) for node in there]
    assert slots(away, used, need, selector, tolerated) == 0
    tainted = [replace(node, taints=({"key": "unknown", "effect": "NoExecute"},)) for node in there]
    assert slots(tainted, used, need, selector, [t for t in tolerated if "key" in t]) == 0


@given(clusters, uses, needs, selectors, tolerations, st.sampled_from(RESOURCES), st.integers(1, 5))
def test_more_use_never_makes_more_room(
    there: list[Node], used: Any, need: Any, selector: Any, tolerated: Any, resource: str, more: int
) -> None:
    fuller = {node.name: dict(used.get(node.name, {})) for node in there}
    for taken in fuller.values():
        taken[resource] = taken.get(resource, 0) + more
    before = slots(there, used, need, selector, tolerated)
    assert slots(there, fuller, need, selector, tolerated) <= before


@pytest.mark.parametrize(
    ("taint", "tolerated"),
    [
        (TAINTS[0], [0, 1, 2]),
        (TAINTS[1], [0, 5, 6]),
        (TAINTS[2], [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_taints_keep_away_whom_the_api_says(taint: dict[str, str], tolerated: list[int]) -> None:
    assert [index for index, one in enumerate(TOLERATIONS) if tolerates([taint], [one])] == tolerated
    assert tolerates([taint], []) == (taint["effect"] == "PreferNoSchedule")


def test_a_device_is_a_place() -> None:
    node = Node("a", allocatable={"cpu": 8000, "memory": 64 << 30, "pods": 110, GPU: 8})
    need = {"cpu": 1000, "memory": 4 << 30, GPU: 2, "pods": 1}
    assert slots([node], {}, need) == 4
    assert slots([node], {"a": {GPU: 3}}, need) == 2
    assert slots([node], {"a": {"cpu": 7500}}, need) == 0
    assert slots([node], {"a": {"pods": 109}}, need) == 1


def test_disk_counts_where_the_node_tells_of_it() -> None:
    node = Node("a", allocatable={"pods": 3})
    need = {"ephemeral-storage": 10, "pods": 1}
    assert slots([node], {}, need) == 3
    assert slots([replace(node, allocatable={"pods": 3, "ephemeral-storage": 15})], {}, need) == 1


def container(cpu: str, memory: str = "0", **more: Any) -> dict[str, Any]:
    return {"resources": {"requests": {"cpu": cpu, "memory": memory}}, **more}


def test_a_pod_needs_its_containers_or_its_largest_init_container() -> None:
    pod = {"spec": {"containers": [container("1500m", "1Gi"), container("1", "1Gi")]}}
    assert need_of(pod) == {"cpu": 2500, "memory": 2 << 30, "pods": 1}
    pod["spec"]["initContainers"] = [container("3", "1Mi"), container("100m", "5Gi")]
    assert need_of(pod) == {"cpu": 3000, "memory": 5 << 30, "pods": 1}


def test_an_init_container_that_stays_counts_beside_the_rest() -> None:
    stays = container("1", restartPolicy="Always")
    pod = {"spec": {"initContainers": [container("2"), stays, container("4")], "containers": [container("3")]}}
    assert need_of(pod)["cpu"] == 5000
    pod["spec"]["initContainers"].pop()
    assert need_of(pod)["cpu"] == 4000
    assert need_of({"spec": {**pod["spec"], "overhead": {"cpu": "250m"}}})["cpu"] == 4250


def test_a_limit_without_a_request_is_one() -> None:
    limits = {"resources": {"limits": {GPU: "2", "cpu": "4"}, "requests": {"cpu": "0.5"}}}
    assert need_of({"spec": {"containers": [limits]}}) == {GPU: 2, "cpu": 500, "pods": 1}


def test_our_own_template_needs_what_its_budget_says() -> None:
    gpu = {"resource": GPU, "memory": "24Gi"}
    template = replica_set({**MINIMAL, "accelerator": gpu})["spec"]["template"]
    assert need_of(template) == {GPU: 1, "cpu": 1000, "memory": 4 << 30, "pods": 1}
