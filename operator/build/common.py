"""What every object has: who owns it, and what a container of ours may do, which is next to nothing."""

from collections.abc import Mapping
from typing import Any

from plimsoll.api.deployment import API_VERSION, KIND
from plimsoll.operator import names
from plimsoll.operator.snapshot import Deployment

Object = dict[str, Any]

#: The runtime image's own user; in its group are the volumes a pod writes to.
USER = 65532


def metadata(
    deployment: Deployment, name: str, *, labels: Mapping[str, str] = {}, annotations: Mapping[str, str] = {}
) -> Object:
    """Of an object that goes with its deployment or job: the garbage collector removes it, no finalizer needed."""
    served = deployment.kind == KIND
    ours = names.labels(deployment.name, "server") if served else names.job_labels(deployment.name)
    found: Object = {
        "name": name,
        "namespace": deployment.namespace,
        "labels": {**ours, **labels},
        "ownerReferences": [
            {
                "apiVersion": API_VERSION, "kind": deployment.kind, "name": deployment.name, "uid": deployment.uid,
                "controller": True, "blockOwnerDeletion": True,
            }
        ],
    }  # fmt: skip
    if annotations:
        found["annotations"] = dict(annotations)
    return found


def source_metadata(namespace: str, name: str, key: str) -> Object:
    """Metadata of an object that all deployments of one source share. It has no owner: the operator
    deletes it once no spec names its source."""
    labels = {**names.OUR_LABELS, names.COMPONENT: "inspect", names.SOURCE: key}
    return {"name": name, "namespace": namespace, "labels": labels}


def pod_security() -> Object:
    """The `restricted` Pod Security Standard, spelled out; volumes are handed over without a walk where they fit."""
    return {
        "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip


def container_security() -> Object:
    """Security context of every container: the `restricted` Pod Security Standard."""
    return {
        "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "privileged": False,
        "readOnlyRootFilesystem": True, "runAsNonRoot": True,
    }  # fmt: skip


def quantity(count: int) -> str:
    """Bytes as the API server itself writes them, so that what is applied reads back the same: 16Gi, 1536Mi, 5."""
    for unit, size in (("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)):
        if count and count % size == 0:
            return f"{count // size}{unit}"
    return str(count)


def plain(value: Any) -> Any:
    """A part of a spec as the API server writes it: no models, no tuples, nothing that is left out."""
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(by_alias=True, exclude_none=True))
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
