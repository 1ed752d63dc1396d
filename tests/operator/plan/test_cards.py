"""GPUs as the nodes' labels describe them: what a budget may be, and which nodes hold it."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from plimsoll.operator import build
from plimsoll.operator.actions import Apply
from plimsoll.operator.build.placing import node_affinity, with_affinity
from plimsoll.operator.plan.capacity import selects
from plimsoll.operator.plan.cards import card, placing
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import Node
from tests.support.miniature import GIB, Cluster, spec

MIB = 1 << 20
GPU, SLICE = "nvidia.com/gpu", "nvidia.com/mig-1g.10gb"
CUDA = Settings(cuda_runtime_image="runtime:cuda")
L4 = {"product": "NVIDIA-L4", "memory": "23034"}
H100 = {"product": "NVIDIA-H100-80GB-HBM3", "memory": "81559", "replicas": "1", "sharing-strategy": "none"}
SHARED = {
    "product": "NVIDIA-H100-80GB-HBM3-SHARED", "memory": "81559", "replicas": "2", "sharing-strategy": "time-slicing",
}  # fmt: skip


def node(name: str, labels: dict[str, str], resource: str = GPU, **changes: Any) -> Node:
    """A node with eight devices, which feature discovery labels so."""
    spelled = {f"{resource}.{key}": value for key, value in labels.items()}
    return Node(
        name, labels=spelled, allocatable={resource: 8, "cpu": 32000, "memory": 256 * GIB, "pods": 110}, **changes
    )


def settled(*nodes: Node, settings: Settings = CUDA, resource: str = GPU, **accelerator: Any) -> Cluster:
    found = Cluster(spec=spec(accelerator={"resource": resource, **accelerator}), nodes=nodes, settings=settings)
    found.settle()
    return found


def pod_of(cluster: Cluster) -> dict[str, Any]:
    (one,) = (one for (kind, _), one in cluster.children.items() if kind == "ReplicaSet")
    found: dict[str, Any] = one["spec"]["template"]["spec"]
    return found


def total(cluster: Cluster) -> int:
    return int(cluster.status["budget"]["perDevice"]["total"])


@pytest.mark.parametrize(
    ("resource", "labels", "size"),
    [
        (GPU, L4, 23034 * MIB),
        (GPU, {"product": "NVIDIA-L4"}, 22 * GIB),
        (GPU, {"product": "NVIDIA-L4-SHARED", "replicas": "4"}, 22 * GIB // 4),
        (GPU, SHARED, 81559 * MIB // 2),
        (GPU, {**H100, "replicas": "4", "sharing-strategy": "mps"}, 81559 * MIB // 4),
        # The MIG strategy `single`, with and without the label for memory, and with the whole card's.
        (GPU, {"product": "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", "memory": "4864"}, 4864 * MIB),
        (GPU, {"product": "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb"}, 10 * GIB * 88 // 100),
        (GPU, {"product": "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", "memory": "81920"}, 10 * GIB),
        (GPU, {"product": "NVIDIA-A100-SXM4-80GB-MIG-3g.40gb-SHARED", "replicas": "2"}, 40 * GIB * 88 // 100 // 2),
        # The MIG strategy `mixed`.
        (SLICE, {"product": "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", "memory": "9984"}, 9984 * MIB),
        (SLICE, {}, 10 * GIB * 88 // 100),
        (SLICE, {"memory": "9984", "replicas": "2"}, 9984 * MIB // 2),
    ],
)
def test_a_budget_without_a_line_is_what_one_pod_may_fill_of_a_device(
    resource: str, labels: dict[str, str], size: int
) -> None:
    cluster = settled(node("g", labels, resource), resource=resource)
    assert total(cluster) == size
    assert pod_of(cluster)["containers"][0]["resources"]["limits"][resource] == "1"
    assert selects(cluster.nodes[0], pod_of(cluster))  # type: ignore[index]


@pytest.mark.parametrize(
    ("resource", "labels", "memory", "words"),
    [
        (GPU, L4, "60Gi", ("60.0 GiB", "22.5 GiB", "NVIDIA-L4 of node g", "fits with: accelerator.memory 23034Mi")),
        (GPU, SHARED, "60Gi", ("shared by 2 pods", "39.8 GiB")),
        (GPU, {"product": "NVIDIA-L4-SHARED", "memory": "23034"}, "4Gi", ("shared by an unknown number of pods",)),
        (GPU, {"product": "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb"}, "60Gi", ("1g.10gb of node g has 8.8 GiB",)),
        (SLICE, {"memory": "9984"}, "20Gi", ("9.8 GiB",)),
        (SLICE, {}, "20Gi", ("8.8 GiB",)),
        # So small that no line fits the model: none is suggested.
        (GPU, {"product": "x", "memory": "512"}, "1Gi", ("fits with: a node with larger devices",)),
    ],
)
def test_a_line_above_every_device_is_refused_with_the_largest(
    resource: str, labels: dict[str, str], memory: str, words: tuple[str, ...]
) -> None:
    cluster = settled(node("g", labels, resource), resource=resource, memory=memory)
    accepted = cluster.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "DoesNotFit")
    for text in ("spec.accelerator.memory", *words):
        assert text in accepted["message"]
    assert not cluster.sets


def test_a_profile_without_any_node_bounds_the_line_by_its_name() -> None:
    assert settled(resource=SLICE, memory="60Gi").condition("Accepted")["reason"] == "DoesNotFit"
    assert settled(resource=SLICE, memory="8Gi").condition("Accepted")["reason"] == "Fits"
    assert total(settled(resource=SLICE)) == 10 * GIB * 88 // 100


def test_what_an_autoscaler_may_bring_is_accepted_with_a_line() -> None:
    assert settled(memory="60Gi").condition("Accepted")["reason"] == "Fits"
    away = node("h", H100, usable=False)
    assert settled(node("l", L4), away, memory="60Gi").condition("Accepted")["reason"] == "Fits"


def test_a_pod_is_placed_only_where_a_device_holds_its_budget() -> None:
    large, small, half = node("large", H100), node("small", L4), node("half", SHARED)
    cluster = settled(large, small, half, memory="60Gi")
    pod = pod_of(cluster)
    assert [selects(one, pod) for one in (large, small, half)] == [True, False, False]
    pod = pod_of(settled(large, small, half, memory="30Gi"))
    assert [selects(one, pod) for one in (large, small, half)] == [True, False, True]
    # Nodes that join later are held to the same line.
    assert not selects(node("later", {"product": "NVIDIA-L40", "memory": "20000"}), pod)
    assert selects(node("later", {"product": "NVIDIA-L40S", "memory": "46068"}), pod)


def test_cards_known_by_their_product_alone_are_told_apart() -> None:
    large, small = node("large", {"product": "NVIDIA-H100"}), node("small", {"product": "NVIDIA-L4"})
    unlabelled = node("bare", {})
    pod = pod_of(settled(large, small, unlabelled, memory="60Gi"))
    assert [selects(one, pod) for one in (large, small, unlabelled)] == [True, False, True]


LABELS = st.fixed_dictionaries(
    {},
    optional={
        "product": st.sampled_from(["NVIDIA-L4", "NVIDIA-H100", "NVIDIA-A100-MIG-3g.40gb", "NVIDIA-L4-SHARED", "x"]),
        "memory": st.sampled_from(["4864", "23034", "81559"]),
        "replicas": st.sampled_from(["0", "1", "2", "7"]),
        "sharing-strategy": st.sampled_from(["none", "time-slicing", "mps"]),
    },
)


@given(st.lists(LABELS, min_size=1, max_size=4), st.integers(1, 90 * GIB))
@example([{"product": "NVIDIA-A100-MIG-3g.40gb", "memory": "81559"}], 40 * GIB + 1)
def test_no_node_is_selected_whose_device_is_known_to_be_smaller(labels: list[dict[str, str]], least: int) -> None:
    nodes = [node(str(index), one) for index, one in enumerate(labels)]
    seen = [card(one, GPU) for one in nodes]
    pod = {"affinity": with_affinity({}, node_affinity(placing(GPU, least, seen)))}
    for one, there in zip(seen, nodes, strict=True):
        if selects(there, pod):
            assert one.bytes is None or one.bytes >= least, there.labels


def test_an_affinity_of_the_user_and_ours_both_count() -> None:
    zone = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
    theirs = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [zone]}}}
    pod = {"affinity": with_affinity(theirs, node_affinity(placing(GPU, 60 * GIB, [])))}
    for labels, at, wanted in ((H100, "a", True), (H100, "b", False), (L4, "a", False)):
        there = node("n", labels)
        assert selects(Node("n", labels={**there.labels, "zone": at}), pod) is wanted


def test_nodes_that_come_and_go_change_no_template() -> None:
    cluster = settled(node("large", H100), node("half", SHARED), memory="30Gi")
    before, writes = pod_of(cluster), cluster.writes
    for nodes in ((node("large", H100), node("small", L4)), (), (node("small", L4),)):
        cluster.nodes = nodes
        cluster.now += 60
        cluster.act()
        assert pod_of(cluster) == before
    assert cluster.condition("Ready")["status"] == "True"
    assert cluster.writes - writes <= 1, "a status at most"


def test_the_template_of_an_earlier_operator_keeps_what_it_has() -> None:
    cluster = settled(node("large", H100), memory="30Gi")
    ((key, live),) = ((key, one) for key, one in cluster.children.items() if key[0] == "ReplicaSet")
    template = live["spec"]["template"]
    bare = {**template, "spec": {k: v for k, v in template["spec"].items() if k != "affinity"}}
    cluster.children[key] = {**live, "spec": {**live["spec"], "template": bare}}
    # The last version named what it rendered from without the devices.
    cluster.sets[key[1]] = replace(cluster.sets[key[1]], built_by=cluster.sets[key[1]].built_by[:-1] + "x")
    assert not [one for one in cluster.act().actions if isinstance(one, Apply)]
    assert build.revision(cluster.spec) == cluster.sets[key[1]].revision


@pytest.mark.parametrize(
    ("settings", "pod", "accepted"),
    [
        (Settings(), {}, False),
        (Settings(runtime_image="r:1"), {"image": "r:1"}, False),
        (Settings(), {"image": "mine:cuda"}, True),
        (Settings(cuda_runtime_image="r:cuda"), {}, True),
    ],
)
def test_a_pod_on_a_gpu_never_runs_the_image_for_cpus(settings: Settings, pod: Any, accepted: bool) -> None:
    wish = spec(accelerator={"resource": GPU, "memory": "8Gi"}, pod=pod)
    cluster = Cluster(spec=wish, settings=settings, nodes=(node("g", H100),))
    cluster.settle()
    found = cluster.condition("Accepted")
    assert found["reason"] == ("Fits" if accepted else "InvalidSpec"), found["message"]
    assert accepted or "runtime.cudaImage" in found["message"]


@pytest.mark.parametrize("resource", ["amd.com/gpu", "gpu.intel.com/i915", "nvidia.com/gpu.shared", "nvidia.com/mig-"])
def test_devices_that_the_engine_does_not_run_on_are_refused_by_name(resource: str) -> None:
    found = settled(resource=resource, memory="8Gi").condition("Accepted")
    assert found["reason"] == "InvalidSpec"
    assert "must be cpu, nvidia.com/gpu or a MIG profile" in found["message"]
    assert resource in found["message"]
