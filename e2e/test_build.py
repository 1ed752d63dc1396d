"""What the builders make, as the API server reads it: valid, allowed under `restricted`, and read back as it was."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.cluster import Cluster
from plimsoll.operator import build
from tests.support.built import DIGEST, MINIMAL, SETTINGS, SOURCES, Object, Spec, deployment, everything

GPU: Spec = {"resource": "nvidia.com/gpu", "memory": "24Gi"}
EVERYTHING: Spec = {
    "cpu": "400m", "nodeSelector": {"pool": "gpu"}, "image": "registry.example/runtime:mine",
    "tolerations": [
        {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60},
        {"key": "gpu", "value": "yes", "effect": "NoSchedule"},
    ],
    "priorityClassName": "system-cluster-critical", "imagePullSecrets": ["pull"], "labels": {"team": "a"},
    "annotations": {"example.org/cost": "b"},
}  # fmt: skip
FULL: Spec = {
    "model": {
        "source": "s3://bucket/folder", "credentialsSecret": "store", "cacheClaim": "cache",
        "servedName": "org/Llama 3", "endpoint": "http://minio.storage.svc:9000",
    },
    "accelerator": GPU,
    "parallelism": {"tensor": 2},
    "serving": {"apiKeysSecret": "callers"},
    "replicas": 3,
    "rollout": {"drainTimeout": "1m30.5s"},
    "pod": EVERYTHING,
}  # fmt: skip
SPECS: dict[str, Spec] = {
    **{source: {**MINIMAL, "model": {"source": source}} for source in SOURCES},
    "gpu": {**MINIMAL, "accelerator": GPU},
    "full": FULL,
    "full oci": {**FULL, "model": {"source": f"oci://r.example/m@{DIGEST}", "credentialsSecret": "pull-model"}},
}
#: Of kinds, the collection.
PLACES = {
    "ReplicaSet": "/apis/apps/v1/namespaces/{}/replicasets",
    "Service": "/api/v1/namespaces/{}/services",
    "Pod": "/api/v1/namespaces/{}/pods",
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
}


def applied(cluster: Cluster, *wanted: Object, dry: bool = True) -> list[Object]:
    """Server-side apply, as the operator does it; nothing is kept where it is `dry`."""
    arguments = ["apply", "--server-side", "--force-conflicts", "--field-manager=plimsoll", "--validate=strict"]
    said = cluster.kubectl(
        *arguments, *(["--dry-run=server"] if dry else []), "-o", "json", "-f", "-",
        stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": wanted}),
    )  # fmt: skip
    found = json.loads(said)
    return found["items"] if found["kind"] == "List" else [found]


def objects(spec: Spec, namespace: str) -> Iterator[Object]:
    for image_volumes in (True, False):
        yield from everything(spec, image_volumes=image_volumes, namespace=namespace)
    for one in build.monitors(deployment(spec, namespace), {"ServiceMonitor"}, SETTINGS):
        if one["kind"] in PLACES:
            yield one


def keeps_image_volumes(cluster: Cluster, namespace: str) -> bool:
    """Some API servers drop the field and make an empty folder of the volume: the operator copies there."""
    volume = {"name": "a", "image": {"reference": "a", "pullPolicy": "IfNotPresent"}}
    spec = SPECS["full oci"]
    replica_set, *_ = everything(spec, namespace=namespace)
    replica_set["spec"]["template"]["spec"]["volumes"].append(volume)
    (live,) = applied(cluster, replica_set)
    return "image" in live["spec"]["template"]["spec"]["volumes"][-1]


def test_the_api_server_takes_every_object_and_reads_it_back_as_it_was(cluster: Cluster, namespace: str) -> None:
    mounted = keeps_image_volumes(cluster, namespace)
    for name, spec in SPECS.items():
        made = [one for one in objects(spec, namespace) if mounted or '"image": {' not in json.dumps(one)]
        assert len(made) > 8
        for wanted, live in zip(made, applied(cluster, *made), strict=True):
            assert not build.differs(wanted, live), (name, wanted["kind"], differences(wanted, live))


def test_pods_of_a_revision_are_allowed_under_the_restricted_standard(cluster: Cluster, namespace: str) -> None:
    # A ReplicaSet is never refused for its pods, so the pods themselves are asked for.
    refused_without = {"spec": {"containers": [{"name": "a", "image": "a"}]}}
    bare = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bare", "namespace": namespace}, **refused_without}
    with pytest.raises(Exception, match="violates PodSecurity"):
        applied(cluster, bare)
    pods = []
    for index, spec in enumerate(SPECS.values()):
        for image_volumes in (True, False):
            replica_set, *_ = everything(spec, image_volumes=image_volumes, namespace=namespace)
            template = replica_set["spec"]["template"]
            meta = {**template["metadata"], "name": f"pod-{index}-{image_volumes}".lower()}
            meta["namespace"] = namespace
            pods.append({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]})
    assert len(applied(cluster, *pods)) == len(pods)


def test_changes_of_others_are_seen_where_they_are_ours_and_only_there(cluster: Cluster, namespace: str) -> None:
    spec = {**MINIMAL, "replicas": 0}
    for wanted in everything(spec, namespace=namespace):
        if wanted["kind"] not in ("ReplicaSet", "Service", "NetworkPolicy"):
            continue
        # The garbage collector takes what has an owner that is not there.
        wanted["metadata"].pop("ownerReferences", None)
        applied(cluster, wanted, dry=False)
        meta = wanted["metadata"]
        path = f"{PLACES[wanted['kind']].format(namespace)}/{meta['name']}"
        harmless = {"metadata": {"labels": {"theirs": "yes"}, "annotations": {"theirs": "yes"}}}
        live = cluster.api("PATCH", path, harmless, kind="merge-patch")
        assert not build.differs(wanted, live), wanted["kind"]
        live = cluster.api("PATCH", path, OURS_CHANGED[wanted["kind"]], kind="merge-patch")
        assert build.differs(wanted, live), wanted["kind"]
        (again,) = applied(cluster, wanted, dry=False)
        assert not build.differs(wanted, again), wanted["kind"]
        assert again["metadata"]["labels"]["theirs"] == "yes"


OURS_CHANGED: dict[str, Any] = {
    "ReplicaSet": {"spec": {"template": {"spec": {"automountServiceAccountToken": True}}}},
    "Service": {"spec": {"selector": {"app": "another"}}},
    "NetworkPolicy": {"spec": {"egress": [{}]}},
}


def differences(wanted: Any, live: Any, path: str = "") -> list[str]:
    """Where they differ, for whoever reads the failure."""
    if isinstance(wanted, dict) and isinstance(live, dict):
        return [line for key in wanted for line in differences(wanted[key], live.get(key), f"{path}.{key}")]
    if isinstance(wanted, list) and isinstance(live, list) and len(wanted) == len(live):
        pairs = enumerate(zip(wanted, live, strict=True))
        return [line for index, (one, other) in pairs for line in differences(one, other, f"{path}.{index}")]
    return [] if wanted == live else [f"{path}: {wanted!r} is {live!r}"]
