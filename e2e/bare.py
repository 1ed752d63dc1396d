"""Deployments that run no container, and operators to start and end: nothing but the API server takes part."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from e2e.cluster import SOON, Cluster, Object, eventually
from e2e.deployments import merged
from e2e.operators import ROOT, LocalOperator
from e2e.proxy import FaultyProxy
from plimsoll.api.deployment import Model
from plimsoll.operator import build, parse

RECORD = ROOT / "tests" / "operator" / "shell" / "objects" / "record.json"
SOURCE = "pvc://nowhere/model.gguf"
CHILDREN = ("services", "poddisruptionbudgets", "networkpolicies", "replicasets")

Start = Callable[..., LocalOperator]


@pytest.fixture
def recorded(cluster: Cluster, namespace: str) -> None:
    """What an inspect pod would have found, so that none is needed: these scenarios run no container."""
    report = parse.inspection(json.loads(RECORD.read_text())["data"].values())
    assert report is not None
    key = build.source_key(namespace, Model(source=SOURCE))
    cluster.apply(build.record(namespace, key, report), server_side=True)


@pytest.fixture
def proxy() -> Iterator[FaultyProxy]:
    made = FaultyProxy()
    yield made
    made.close()


@pytest.fixture
def start(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: None) -> Iterator[Start]:
    """Starts operators, as many as wanted, through a proxy if one is given."""
    started: list[LocalOperator] = []

    def begin(proxy: FaultyProxy | None = None, **more: Any) -> LocalOperator:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        operator = LocalOperator(folder, {**settings, **more})
        started.append(operator)
        with monkeypatch.context() as environment:
            if proxy is not None:
                environment.setenv("KUBECONFIG", str(proxy.kubeconfig(folder)))
            operator.start()
        return operator

    yield begin
    for operator in started:
        operator.stop()


class Deployment:
    """A deployment whose pods find no node, so that nothing but the API server takes part."""

    def __init__(self, cluster: Cluster, namespace: str, name: str = "a") -> None:
        self.cluster, self.namespace, self.name = cluster, namespace, name

    def apply(self, **spec: Any) -> None:
        base = {
            "model": {"source": SOURCE}, "accelerator": {"resource": "cpu", "memory": "1Gi"}, "replicas": 0,
            "context": {"maxLength": 1024}, "pod": {"cpu": "10m", "nodeSelector": {"plimsoll.dev/nowhere": "true"}},
        }  # fmt: skip
        meta = {"name": self.name, "namespace": self.namespace}
        body = {"apiVersion": "plimsoll.dev/v1alpha1", "kind": "ModelDeployment", "metadata": meta}
        self.cluster.apply({**body, "spec": merged(base, spec)})

    def delete(self) -> None:
        """Until nothing of it is left."""
        self.cluster.delete("modeldeployments", self.namespace, self.name)
        left = (*CHILDREN, "pods")
        eventually(lambda: not any(self.cluster.find(kind, self.namespace) for kind in left), SOON, "all is gone", 0.2)

    def get(self) -> Object:
        found = self.cluster.get("modeldeployments", self.namespace, self.name)
        assert found is not None
        return found

    def seen(self) -> bool:
        """Whether the status speaks of the spec that is there now."""
        found = self.get()
        return found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"]

    def sets(self) -> list[Object]:
        return self.cluster.find("replicasets", self.namespace)

    def all_there(self, sets: int = 1) -> bool:
        counts = {kind: len(self.cluster.find(kind, self.namespace)) for kind in CHILDREN}
        return self.seen() and counts["services"] == 1 and counts["replicasets"] == sets

    def end_state(self) -> dict[str, Any]:
        """Everything of it that must not depend on what happened on the way."""
        found = {kind: [_lasting(one) for one in self.cluster.find(kind, self.namespace)] for kind in CHILDREN}
        status = copy.deepcopy(self.get().get("status", {}))
        for condition in status.get("conditions", []):
            condition.pop("lastTransitionTime", None)
        text = json.dumps({**found, "status": status, "pods": len(self.cluster.find("pods", self.namespace))})
        return json.loads(re.sub(r"\b(a-[0-9a-f]{10})-[a-z0-9]{5}\b", r"\1-xxxxx", text))


def _lasting(raw: Object) -> Object:
    meta = {key: raw["metadata"].get(key) for key in ("name", "labels", "annotations")}
    spec = {k: v for k, v in raw["spec"].items() if k not in ("clusterIP", "clusterIPs")}
    return {"metadata": meta, "spec": spec}


@pytest.fixture
def deployment(cluster: Cluster, namespace: str) -> Deployment:
    return Deployment(cluster, namespace)


def ready(operator: LocalOperator) -> bool:
    return httpx.get(f"http://127.0.0.1:{operator.port}/readyz", timeout=5).status_code == 200
