"""Deployments for nodes that only play (KWOK): every pod on them becomes Ready at once and none runs."""

from typing import Any

import pytest

from e2e.cluster import Cluster, Object, eventually
from e2e.deployments import merged
from plimsoll.api.deployment import Model
from plimsoll.api.inspection import Inspection
from plimsoll.operator import build

TAINT = {"key": "kwok.x-k8s.io/node", "operator": "Equal", "value": "fake", "effect": "NoSchedule"}
SOURCE = "pvc://models/SmolLM2-135M-Instruct.Q4_1.gguf"


def needs_played_nodes(cluster: Cluster) -> None:
    if not cluster.find("nodes", labelSelector="type=kwok"):
        pytest.skip("no node is labelled type=kwok: these scenarios need KWOK's")


def manifest(namespace: str, name: str, **spec: Any) -> Object:
    """Small, for played nodes alone."""
    wish = {
        "model": {"source": SOURCE},
        "accelerator": {"resource": "cpu", "memory": "1Gi"},
        "context": {"maxLength": 1024},
        "pod": {"cpu": "100m", "nodeSelector": {"type": "kwok"}, "tolerations": [TAINT]},
    }
    meta = {"name": name, "namespace": namespace}
    return {
        "apiVersion": "plimsoll.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": meta,
        "spec": merged(wish, spec),
    }


def record(cluster: Cluster, namespace: str, inspection: Inspection) -> None:
    """What an inspect pod would have left."""
    found = build.record(namespace, build.source_key(namespace, Model(source=SOURCE)), inspection)
    cluster.api("POST", f"/api/v1/namespaces/{namespace}/configmaps", found)


def claim(cluster: Cluster, namespace: str) -> None:
    """Claim `models`, bound to a volume with nothing behind it: the scheduler asks for one."""
    common = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
    reference = {"namespace": namespace, "name": "models"}
    volume = {**common, "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/nonexistent"}, "claimRef": reference}
    wish = {**common, "volumeName": namespace, "resources": {"requests": {"storage": "1Gi"}}}
    cluster.api("POST", "/api/v1/persistentvolumes", {"metadata": {"name": namespace}, "spec": volume})
    path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    cluster.api("POST", path, {"metadata": {"name": "models"}, "spec": wish})

    def bound() -> bool:
        return bool(cluster.api("GET", f"{path}/models")["status"]["phase"] == "Bound")

    eventually(bound, 120, "the claim is bound")


def unclaim(cluster: Cluster, namespace: str) -> None:
    """Takes the volume away; the claim goes with its namespace."""
    cluster.delete("persistentvolumes", "", namespace)
