"""What once froze operators: kinds that go and come back, objects that nothing checked, labels that somebody took."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import yaml

from e2e.bare import Deployment, Start, ready
from e2e.cluster import PATHS, SOON, Cluster, RefusedError, eventually
from e2e.operators import ROOT
from e2e.results import Result
from plimsoll.operator import names

CRDS = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))]
NAMES = [f"crd/{crd['metadata']['name']}" for crd in CRDS]
ANYTHING: dict[str, Any] = {"x-kubernetes-preserve-unknown-fields": True}


@pytest.fixture
def crds(cluster: Cluster) -> Iterator[None]:
    """Puts the CRDs back."""
    yield
    _apply_crds(cluster)


def _apply_crds(cluster: Cluster) -> None:
    cluster.apply(*CRDS, server_side=True)
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", *NAMES)


@pytest.mark.alone
def test_crds_that_are_deleted_and_applied_again_are_watched_again(
    start: Start, deployment: Deployment, cluster: Cluster, crds: None, result: Result
) -> None:
    operator = start()
    deployment.apply()
    eventually(deployment.all_there, SOON, "everything is there")
    cluster.kubectl("delete", *NAMES, "--timeout=60s")
    eventually(lambda: not ready(operator), SOON, "it says that it waits")
    assert operator.healthy(), "a restart would change nothing"
    _apply_crds(cluster)
    eventually(lambda: ready(operator), SOON, "it watches again")
    deployment.apply(replicas=1)
    eventually(deployment.all_there, SOON, "it goes on")
    assert operator.healthy()


def _loosened(cluster: Cluster) -> None:
    schema = "/spec/versions/0/schema/openAPIV3Schema"
    for crd in CRDS:
        change = [{"op": "replace", "path": schema, "value": {"type": "object", **ANYTHING, "properties": {
            "spec": ANYTHING, "status": ANYTHING}}}]  # fmt: skip
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"
        cluster.api("PATCH", path, change, kind="json-patch")


def _store(cluster: Cluster, namespace: str, kind: str, name: str, more: str) -> bool:
    head = f'"apiVersion": "plimsoll.dev/v1alpha1", "kind": "{kind}", "metadata": {{"name": "{name}"}}'
    try:
        # As text: no decoder of ours would read the deep one.
        cluster.kubectl("create", "--validate=false", "-n", namespace, "-f", "-", stdin=f"{{{head}, {more}}}")
    except RefusedError:
        return False
    return True


@pytest.mark.alone
def test_malformed_objects_harm_themselves_alone(
    start: Start, deployment: Deployment, cluster: Cluster, namespace: str, crds: None, result: Result
) -> None:
    first = start()
    deployment.apply()
    eventually(deployment.all_there, SOON, "everything is there")
    _loosened(cluster)
    deep = '"spec": {"model": ' + '{"a":' * 2000 + "1" + "}" * 2001
    bodies = {"five": '"spec": {"model": 5}', "deep": deep, "status": '"spec": {"model": {"source": "pvc://c/m"}}'}
    for kind, more in (("ModelDeployment", {}), ("QuantizationJob", {"number": '"spec": 5', "list": '"spec": [1]'})):
        for name, body in (bodies | more).items():
            # The API server takes some seconds to see to the new schema.
            eventually(partial(_store, cluster, namespace, kind, name, body), SOON, f"{name} is stored")
        path = PATHS[f"{kind.lower()}s"].format(namespace)
        status = {"status": {"conditions": 5, "phase": {}, "progress": [], "output": "x", "load": [5]}}
        cluster.api("PATCH", f"{path}/status/status", status, kind="merge-patch")
    _apply_crds(cluster)
    hostile = {names.FAILED: '{"at":"0001-01-01T00:00:00+14:00"}', names.NUMBER: "9" * 5000,
               names.BUDGET: '{"a":' * 3000}  # fmt: skip
    [revision] = deployment.sets()
    cluster.patch("replicasets", namespace, revision["metadata"]["name"], {"metadata": {"annotations": hostile}})
    meta = {
        "name": "record",
        "labels": {names.MANAGED_BY: names.MANAGER, names.SOURCE: "x", names.COMPONENT: "inspect"},
    }
    record = {"data": {"a": "plimsoll-inspection/1 zzz", "b": "[1]"}, "metadata": meta}
    cluster.api("POST", f"/api/v1/namespaces/{namespace}/configmaps", record)
    second = start()
    eventually(lambda: ready(first) and ready(second), SOON, "a new operator starts beside them")
    first.stop()
    deployment.apply(replicas=1)
    eventually(lambda: deployment.all_there() and deployment.sets()[0]["spec"]["replicas"] == 1, SOON, "others go on")

    def said(resource: str, name: str) -> bool:
        found = cluster.get(resource, namespace, name) or {}
        conditions = (found.get("status") or {}).get("conditions") or []
        return any(one["type"] == "Accepted" and one["status"] == "False" for one in conditions)

    for resource in ("modeldeployments", "quantizationjobs"):
        eventually(lambda r=resource: said(r, "five"), SOON, f"the object of {resource} says what is wrong with it")
    eventually(lambda: _restored(cluster, namespace), SOON, "what somebody wrote over annotations of ours is put right")
    assert second.healthy()


def _restored(cluster: Cluster, namespace: str) -> bool:
    notes = [one["metadata"]["annotations"] for one in cluster.find("replicasets", namespace)]
    return all(len(one[names.NUMBER]) < 5 and one[names.BUDGET].endswith("}") for one in notes)


MARKED = ("replicasets", "services", "poddisruptionbudgets", "networkpolicies", "pods", "configmaps")


def _marks(cluster: Cluster, namespace: str) -> dict[str, str]:
    """What carries our label, or did: its uid, and the label."""
    found = [one for kind in MARKED for one in cluster.find(kind, namespace, labelSelector=names.COMPONENT)]
    return {one["metadata"]["uid"]: one["metadata"]["labels"].get(names.MANAGED_BY, "") for one in found}


def _back(now: dict[str, str], before: dict[str, str]) -> bool:
    """An operator that starts without its record may inspect the source again, which adds a policy of its own."""
    return before.items() <= now.items()


def test_labels_that_somebody_takes_off_are_put_back(
    start: Start, deployment: Deployment, cluster: Cluster, namespace: str, result: Result
) -> None:
    operator = start()
    deployment.apply(replicas=1)
    eventually(deployment.all_there, SOON, "a first revision")
    deployment.apply(replicas=1, serving={"maxRunningRequests": 16})
    eventually(lambda: deployment.all_there(2) and cluster.find("pods", namespace), SOON, "a second revision")
    eventually(lambda: deployment.get()["status"]["replicas"] == len(cluster.find("pods", namespace)), SOON, "counted")
    before = _marks(cluster, namespace)
    assert len(before) >= 7

    def taken() -> None:
        for kind in MARKED:
            for one in cluster.find(kind, namespace, labelSelector=names.COMPONENT):
                name = one["metadata"]["name"]
                cluster.patch(kind, namespace, name, {"metadata": {"labels": {names.MANAGED_BY: None}}})

    replicas = deployment.get()["status"]["replicas"]
    taken()
    eventually(lambda: _back(_marks(cluster, namespace), before), SOON, "all of them are put back", 0.2)
    assert deployment.get()["status"]["replicas"] == replicas
    operator.stop()
    taken()
    start()
    eventually(lambda: _back(_marks(cluster, namespace), before), SOON, "also what was taken while no operator ran")
    deployment.apply(replicas=2, serving={"maxRunningRequests": 16})
    eventually(lambda: len(cluster.find("pods", namespace)) >= 2, SOON, "the deployment goes on")
