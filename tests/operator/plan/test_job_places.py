"""Where the pods of a quantization job may go, and what is said where they may go nowhere."""

from dataclasses import replace
from typing import Any

import pytest

from plimsoll.api.device import HOST_BYTES_PER_DEVICE
from plimsoll.operator.plan.capacity import selects
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import Node
from tests.support.job_miniature import JobCluster, job_spec
from tests.support.miniature import GIB

MIB = 1 << 20
GPU = "nvidia.com/gpu"
CUDA = Settings(cuda_runtime_image="runtime:cuda")


def test_a_job_whose_pods_are_refused_says_so_in_the_clusters_words() -> None:
    cluster = JobCluster()
    while cluster.batch is None:
        cluster.act()
        cluster.others_move()
    cluster.pods = []
    cluster.batch = replace(
        cluster.batch, last_event='pods "demo" is forbidden: exceeded quota: must specify limits.cpu'
    )
    assert 0 < (cluster.act().again_in or 0) <= 30
    stands = cluster.condition("Complete")
    assert (stands["status"], stands["reason"]) == ("False", "PodsRefused")
    assert "must specify limits.cpu" in cluster.status["message"]
    assert "pod.limits" in cluster.status["message"]


def test_a_node_that_the_users_affinity_excludes_holds_no_job() -> None:
    term = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
    required = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}
    large = Node("n1", allocatable={"cpu": 8000, "memory": 16 * GIB, "pods": 110}, labels={"zone": "b"})
    small = replace(large, name="n2", labels={"zone": "a"}, allocatable={**large.allocatable, "memory": 100 * MIB})
    cluster = JobCluster(spec=job_spec(pod={"affinity": required}), nodes=(large, small))
    cluster.settle()
    assert cluster.condition("Accepted")["reason"] == "DoesNotFit"
    assert "n2" in cluster.condition("Accepted")["message"]
    # kubectl cuts a column at a line break.
    assert "fits with: " in cluster.status["message"]
    assert "\n" not in cluster.status["message"]


def _sized(**fields: Any) -> tuple[int, int, str]:
    """(bytes of the walk, bytes of the line, what `Accepted` says) of a job once it runs."""
    cluster = JobCluster(spec=job_spec(**fields))
    while cluster.batch is None:
        cluster.act()
        cluster.others_move()
    memory = cluster.status["budget"]["memory"]
    return memory["walk"], memory["total"], cluster.condition("Accepted")["message"]


def test_workers_count_in_the_memory_of_the_job() -> None:
    alone, line, words = _sized()
    assert "workers" not in words
    four, raised, words = _sized(parallelism={"workers": 4})
    assert "with 4 workers" in words
    assert raised >= four >= alone + 3 * (288 * MIB)
    assert raised > line


def test_workers_that_do_not_fit_the_line_are_refused_with_the_number_that_does() -> None:
    cluster = JobCluster(spec=job_spec(parallelism={"workers": 4}, accelerator={"memory": "1100Mi"}))
    cluster.settle()
    refusal = cluster.condition("Accepted")
    assert refusal["reason"] == "DoesNotFit"
    assert "fits with: parallelism.workers 2" in refusal["message"]


def gpu_node(name: str, devices: int, memory: int | None = 23034, **changes: Any) -> Node:
    """A node whose labels say so many MiB of each device, or nothing."""
    labels = {} if memory is None else {f"{GPU}.product": "NVIDIA-L4", f"{GPU}.memory": str(memory)}
    return Node(
        name, allocatable={GPU: devices, "cpu": 32000, "memory": 256 * GIB, "pods": 110}, labels=labels, **changes
    )


def on_gpus(*nodes: Node, workers: int = 2, settings: Settings = CUDA, **accelerator: Any) -> JobCluster:
    wish = job_spec(accelerator={"resource": GPU, **accelerator}, parallelism={"workers": workers})
    cluster = JobCluster(spec=wish, nodes=nodes, settings=settings)
    for _ in range(6):
        cluster.act()
        if cluster.batch is None:
            cluster.others_move()
    return cluster


def body_of(cluster: JobCluster) -> dict[str, Any]:
    (one,) = (one for (kind, _), one in cluster.children.items() if kind == "Job")
    found: dict[str, Any] = one["spec"]["template"]["spec"]
    return found


def test_a_job_on_gpus_asks_one_pod_for_them_where_they_are_large_enough() -> None:
    large = gpu_node("large", 4)
    cluster = on_gpus(large, gpu_node("small", 4, 512), gpu_node("unlabelled", 4, None))
    body = body_of(cluster)
    assert body["containers"][0]["resources"]["limits"][GPU] == "2"
    assert [selects(node, body) for node in cluster.nodes or ()] == [True, False, True]
    devices = cluster.status["budget"]["devices"]
    assert devices["count"] == 2
    assert 600 * MIB < devices["memory"] < 2 * GIB
    assert "with 2 devices" in cluster.condition("Accepted")["message"]
    # The host's: the command line and the limit of the pod.
    assert cluster.status["budget"]["memory"]["total"] > 2 * HOST_BYTES_PER_DEVICE
    line = on_gpus(large, memory="24Gi")
    assert "accelerator.memory 23034Mi" in line.condition("Accepted")["message"]
    assert not [key for key in line.children if key[0] == "Job"]


def test_a_job_waits_for_nodes_with_gpus_that_may_still_join() -> None:
    none = Node("n1", allocatable={"cpu": 8000, "memory": 4 * GIB, "pods": 110})
    for nodes in ((none,), ()):
        assert on_gpus(*nodes).condition("Accepted")["status"] == "True"
    # The GPU nodes' taint is tolerated by admission, as for deployments.
    tainted = gpu_node("g", 2, taints=({"key": GPU, "value": "present", "effect": "NoSchedule"},))
    assert on_gpus(tainted, none).condition("Accepted")["status"] == "True"


@pytest.mark.parametrize(
    ("nodes", "accelerator", "settings", "words"),
    [
        ((gpu_node("a", 1), gpu_node("b", 2)), {}, CUDA, ("spec.parallelism.workers", "b, has 2", "workers 2,")),
        ((gpu_node("a", 4, 512),), {}, CUDA, ("spec.accelerator.resource", "NVIDIA-L4 of node a", "devices of ")),
        ((gpu_node("a", 4),), {"memory": "512Mi"}, CUDA, ("spec.accelerator.memory", "has 512.0 MiB", "743Mi")),
        ((gpu_node("a", 4),), {}, Settings(), ("spec.accelerator.resource", "runtime.cudaImage")),
    ],
)  # fmt: skip
def test_gpus_that_are_not_there_or_too_small_are_refused_with_the_way_out(
    nodes: tuple[Node, ...], accelerator: dict[str, Any], settings: Settings, words: tuple[str, ...]
) -> None:
    cluster = on_gpus(*nodes, workers=4, settings=settings, **accelerator)
    message = cluster.condition("Accepted")["message"]
    assert cluster.condition("Accepted")["status"] == "False"
    assert [one for one in words if one not in message] == [], message
