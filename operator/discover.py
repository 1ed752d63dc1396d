"""What the cluster has: our own kind, the optional ones, image volumes."""

from collections.abc import Iterable

import structlog

from plimsoll.operator import kinds, names
from plimsoll.operator.cluster import Cluster, ClusterError
from plimsoll.operator.kinds import Kind

log = structlog.get_logger("plimsoll.operator.discover")


def optional(cluster: Cluster) -> tuple[Kind, ...]:
    """Kinds of other projects that we make objects of where they exist."""
    return tuple(kind for kind in kinds.OPTIONAL if cluster.serves(kind))


def image_volumes(cluster: Cluster, namespaces: Iterable[str]) -> bool:
    """Whether the API server keeps a pod's image volume: asked by a dry run, since no other answer is reliable."""
    reference = "plimsoll.dev/none@sha256:" + "0" * 64
    for namespace in namespaces:
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "plimsoll-image-volume-probe", "namespace": namespace, "labels": {
                names.MANAGED_BY: names.MANAGER}},
            "spec": {
                "automountServiceAccountToken": False,
                "securityContext": {
                    "runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [{
                    "name": "probe", "image": reference,
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [{"name": "image", "mountPath": "/image"}],
                }],
                "volumes": [{"name": "image", "image": {"reference": reference}}],
            },
        }  # fmt: skip
        try:
            # Nothing is stored, so the lease does not matter.
            kept = cluster.request("POST", kinds.POD.path(namespace), {"dryRun": "All"}, body, gated=False)
        except ClusterError as error:
            log.debug("image volumes could not be asked for", namespace=namespace, error=str(error))
            continue
        return any("image" in volume for volume in kept["spec"].get("volumes") or ())
    return False
