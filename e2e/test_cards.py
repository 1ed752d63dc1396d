"""GPUs of many kinds, by the labels of GPU feature discovery, on nodes that have none."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from e2e.bare import Start
from e2e.cluster import SOON, Cluster, Object, eventually
from e2e.deployments import ModelDeployment
from e2e.played import claim, manifest, record, unclaim
from e2e.results import Result
from plimsoll.checkpoint.inspecting import inspect_source

POOL = "plimsoll.dev/e2e-pool"
GPU, SLICE = "nvidia.com/gpu", "nvidia.com/mig-1g.10gb"


def labels(resource: str, product: str, memory: int, replicas: int = 1, strategy: str = "none") -> dict[str, str]:
    """What feature discovery writes of a resource; `memory` in MiB."""
    found = {"product": product, "memory": memory, "count": 4, "replicas": replicas, "sharing-strategy": strategy}
    return {f"{resource}.{key}": str(value) for key, value in found.items()}


#: Of each node: what it advertises, and its labels.
NODES: dict[str, tuple[dict[str, int], dict[str, str]]] = {
    "l4": ({GPU: 4}, labels(GPU, "NVIDIA-L4", 23034)),
    "h100": ({GPU: 4}, labels(GPU, "NVIDIA-H100-80GB-HBM3", 81559)),
    "sliced": ({GPU: 16}, labels(GPU, "NVIDIA-A100-SXM4-80GB-SHARED", 81920, 4, "time-slicing")),
    "single": (
        {GPU: 28},
        {"nvidia.com/mig.strategy": "single", **labels(GPU, "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", 9728)},
    ),
    "mixed": (
        {GPU: 0, SLICE: 28},
        {
            "nvidia.com/mig.strategy": "mixed",
            **labels(GPU, "NVIDIA-H100-80GB-HBM3", 81559, 0),
            **labels(SLICE, "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", 9984),
        },
    ),
    # An older feature discovery names the sharing in the product and nothing else.
    "unclear": ({GPU: 8}, {f"{GPU}.product": "Tesla-T4-SHARED", f"{GPU}.memory": "15360"}),
}


class Pool:
    """Nodes that the scheduler knows and behind which nothing runs: pods are placed on them and stay Pending."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace

    def name(self, short: str) -> str:
        return f"{short}-{self.namespace[-4:]}"

    def add(self) -> None:
        for short, (devices, more) in NODES.items():
            amounts = {"cpu": "64", "memory": "512Gi", "pods": "110", **{k: str(v) for k, v in devices.items()}}
            name = self.name(short)
            meta = {"name": name, "labels": {"kubernetes.io/hostname": name, POOL: self.namespace, **more}}
            status = {"capacity": amounts, "allocatable": amounts}
            self.cluster.api("POST", "/api/v1/nodes", {"metadata": meta, "status": status})
        eventually(self.usable, SOON, "the nodes take pods")

    def beat(self) -> None:
        """Does what a kubelet does: without it the node counts as lost within a minute."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now}
        for short in NODES:
            path = f"/api/v1/nodes/{self.name(short)}/status"
            self.cluster.api("PATCH", path, {"status": {"conditions": [ready]}}, kind="strategic-merge-patch")

    def usable(self) -> bool:
        self.beat()
        found = self.cluster.find("nodes", labelSelector=f"{POOL}={self.namespace}")
        return len(found) == len(NODES) and not any(node["spec"].get("taints") for node in found)

    def remove(self) -> None:
        """With its pods, which no kubelet ends."""
        here = ("-n", self.namespace, "--all")
        self.cluster.kubectl("delete", "modeldeployments,replicasets", *here)
        self.cluster.kubectl("delete", "pods", *here, "--grace-period=0", "--force")
        for short in NODES:
            self.cluster.delete("nodes", "", self.name(short))


@pytest.fixture
def pool(cluster: Cluster, namespace: str, model_file: Path) -> Iterator[Pool]:
    """Nodes with GPUs, the demo model's record and a claim."""
    record(cluster, namespace, inspect_source(f"file://{model_file}"))
    claim(cluster, namespace)
    made = Pool(cluster, namespace)
    try:
        made.add()
        yield made
    finally:
        made.remove()
        unclaim(cluster, namespace)


@pytest.mark.cluster_wide
def test_gpu_pods_are_sized_and_placed_by_what_nodes_say_of_their_devices(
    cluster: Cluster, namespace: str, pool: Pool, start: Start, result: Result
) -> None:
    def deploy(
        name: str, memory: str | None, resource: str = GPU, at: str | None = None, replicas: int = 1
    ) -> ModelDeployment:
        pool.beat()
        selector = {"type": None, POOL: namespace} | ({} if at is None else {"kubernetes.io/hostname": pool.name(at)})
        accelerator = {"resource": resource, "memory": memory}
        cluster.apply(
            manifest(namespace, name, accelerator=accelerator, replicas=replicas, pod={"nodeSelector": selector})
        )
        return ModelDeployment(cluster, namespace, name)

    def refused(deployment: ModelDeployment, reason: str, *words: str) -> None:
        message = deployment.wait("Accepted", "False", reason=reason, seconds=SOON)["message"]
        assert all(word in message for word in words), message
        assert not deployment.replica_sets()
        result.note(**{deployment.name: message[:200]})

    def places(deployment: ModelDeployment) -> set[str]:
        deployment.wait("Accepted", seconds=SOON)
        wanted = deployment.get()["spec"]["replicas"]

        def placed() -> set[str]:
            found = [pod["spec"].get("nodeName") for pod in deployment.pods()]
            assert len(found) == wanted, found
            assert all(found), deployment.words()
            return {str(name) for name in found}

        return set(eventually(placed, SOON, f"pods of {deployment.name} are placed"))

    def line(deployment: ModelDeployment) -> int:
        deployment.wait("Accepted", seconds=SOON)
        return int(deployment.status["budget"]["perDevice"]["total"]) >> 20

    # An operator that only has the image for CPUs.
    alone = start(cudaRuntimeImage=None)
    large = deploy("large", "60Gi", replicas=3)
    refused(large, "InvalidSpec", "spec.accelerator.resource", "runtime.cudaImage")
    alone.stop()

    start()
    refused(deploy("too-large", "90Gi"), "DoesNotFit", "90", "NVIDIA-H100-80GB-HBM3", pool.name("h100"), "79.6 GiB")
    refused(
        deploy("too-large-part", "30Gi", at="sliced"),
        "DoesNotFit",
        pool.name("sliced"),
        "(shared by 4 pods) has 20.0 GiB",
    )
    refused(deploy("too-large-slice", "12Gi", SLICE), "DoesNotFit", "MIG-1g.10gb", pool.name("mixed"), "9.8 GiB")
    refused(deploy("unclear", None, at="unclear"), "MemoryUnknown", f"{GPU}.replicas")

    # The budget of each holds where its pods are.
    assert places(large) == {pool.name("h100")}
    (pod, *_) = large.pods()
    terms = _terms(pod)
    assert any(e["key"] == f"{GPU}.memory" and e["operator"] == "Gt" for term in terms for e in term), terms
    medium = deploy("medium", "21Gi", replicas=5)
    part = deploy("part", "19Gi", at="sliced", replicas=2)
    smallest, slices = deploy("smallest", None, at="single"), deploy("slices", None, SLICE, replicas=2)
    shared = deploy("shared", None, at="sliced")
    assert places(medium) == {pool.name("h100"), pool.name("l4")}
    assert places(part) == {pool.name("sliced")}
    assert places(slices) == {pool.name("mixed")}
    assert (line(smallest), line(slices), line(shared)) == (9728, 9984, 20480)


def _terms(pod: Object) -> list[list[Object]]:
    required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return [term["matchExpressions"] for term in required["nodeSelectorTerms"]]
