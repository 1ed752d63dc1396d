"""Pods of the tests' own: they hold a claim, or ask from inside the cluster."""

from collections.abc import Sequence

from e2e.cluster import Object


def helper_pod(namespace: str, name: str, image: str, command: Sequence[str], claim: str | None = None) -> Object:
    """One that the `restricted` standard lets in. A claim is mounted at /claim, writable."""
    container: Object = {
        "name": "helper",
        "image": image,
        "command": list(command),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
    }
    spec: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": 65532, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }  # fmt: skip
    if claim is not None:
        container["volumeMounts"] = [{"name": "claim", "mountPath": "/claim"}]
        spec["volumes"] = [{"name": "claim", "persistentVolumeClaim": {"claimName": claim}}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": spec}
