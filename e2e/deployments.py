"""ModelDeployments as tests write and watch them."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from e2e.cluster import SERVING, SOON, Cluster, Object, RefusedError, eventually
from tests.support.gitops import kstatus

API_VERSION = "plimsoll.dev/v1alpha1"
DEPLOYMENT = "plimsoll.dev/deployment"
COMPONENT = "plimsoll.dev/component"
REVISION = "plimsoll.dev/revision"
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CLAIM = "models"


def merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `change` laid over it, as a JSON merge patch does."""
    found = dict(base)
    for key, value in change.items():
        if value is None:
            found.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(found.get(key), Mapping):
            found[key] = merged(found[key], value)
        else:
            found[key] = value
    return found


def manifest(namespace: str, name: str, **spec: Any) -> Object:
    """The demo model from its claim, small: little memory, and a request for a processor that any node has left."""
    base = {
        "model": {"source": f"pvc://{CLAIM}/{MODEL_FILE}"},
        "accelerator": {"resource": "cpu", "memory": "1Gi"},
        "context": {"maxLength": 1024},
        "rollout": {"drainTimeout": "60s"},
        "pod": {"cpu": "50m"},
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelDeployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": merged(base, spec),
    }


class ModelDeployment:
    """One deployment in the cluster."""

    def __init__(self, cluster: Cluster, namespace: str, name: str) -> None:
        self.cluster, self.namespace, self.name = cluster, namespace, name

    def get(self) -> Object:
        found = self.cluster.get("modeldeployments", self.namespace, self.name)
        assert found is not None, f"{self.name} is gone"
        return found

    @property
    def status(self) -> Object:
        return self.get().get("status", {})

    def condition(self, kind: str) -> Object | None:
        """The condition if it speaks of the present generation."""
        live = self.get()
        for condition in live.get("status", {}).get("conditions", []):
            if condition["type"] == kind and condition.get("observedGeneration") == live["metadata"]["generation"]:
                return condition
        return None

    def wait(self, kind: str, status: str = "True", *, reason: str | None = None, seconds: float = SERVING) -> Object:
        """Returns the condition once it has this status (and reason) for the present generation."""

        def look() -> Object | None:
            found = self.condition(kind)
            as_wanted = found and found["status"] == status and reason in (None, found["reason"])
            assert as_wanted, self.words()
            return found

        return eventually(look, seconds, f"{self.name}: {kind}={status} {reason or ''}")

    def ready(self, seconds: float = SERVING) -> Object:
        return self.wait("Ready", seconds=seconds)

    def words(self) -> str:
        """Phase, message and conditions in a few lines."""
        status = self.status
        head = f"{status.get('phase')}: {status.get('message')}"
        return "\n".join(
            [head, *(f"{c['type']}={c['status']} {c['reason']}: {c['message']}" for c in status.get("conditions", []))]
        )

    def patch(self, **spec: Any) -> int:
        """Changes the spec as a merge patch does; returns the new generation."""
        live = self.cluster.patch("modeldeployments", self.namespace, self.name, {"spec": spec})
        return live["metadata"]["generation"]

    def delete(self) -> None:
        self.cluster.delete("modeldeployments", self.namespace, self.name)

    @property
    def selector(self) -> str:
        return f"{DEPLOYMENT}={self.name},{COMPONENT}=server"

    def pods(self, *, ending: bool = False) -> list[Object]:
        """Its server pods; those that are being deleted only where asked for."""
        found = self.cluster.find("pods", self.namespace, labelSelector=self.selector)
        return [pod for pod in found if ending or "deletionTimestamp" not in pod["metadata"]]

    def ready_pods(self) -> list[Object]:
        return [
            pod
            for pod in self.pods()
            if any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))
        ]

    def replica_sets(self) -> list[Object]:
        return self.cluster.find("replicasets", self.namespace, labelSelector=f"{DEPLOYMENT}={self.name}")

    def restarts(self) -> int:
        return sum(c["restartCount"] for pod in self.pods() for c in pod["status"].get("containerStatuses", []))

    def identities(self) -> set[str]:
        """uids of its pods: who is still the same one."""
        return {pod["metadata"]["uid"] for pod in self.pods()}

    def owned(self) -> list[str]:
        """KIND/NAME of everything in the namespace that carries the deployment's label."""
        kinds = "pods,replicasets,services,poddisruptionbudgets,networkpolicies,configmaps"
        mine = ("-n", self.namespace, "-l", f"{DEPLOYMENT}={self.name}")
        return self.cluster.kubectl("get", kinds, *mine, "-o", "name").split()

    def expose(
        self, ports: Sequence[int], *, name: str | None = None, selector: Mapping[str, str] | None = None,
        unready: bool = False,
    ) -> int:  # fmt: skip
        """A NodePort Service of the test's own for the deployment's pods, or those of `selector`, `unready` ones too;
        returns the first free one of `ports`."""
        last: RefusedError | None = None
        for port in ports:
            service = {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name or f"{self.name}-node", "namespace": self.namespace},
                "spec": {
                    "type": "NodePort",
                    "publishNotReadyAddresses": unready,
                    "selector": dict(selector or {DEPLOYMENT: self.name, COMPONENT: "server"}),
                    "ports": [{"name": "http", "port": 8000, "targetPort": 8000, "nodePort": port}],
                },
            }
            try:
                self.cluster.api("POST", f"/api/v1/namespaces/{self.namespace}/services", service)
            except RefusedError as refused:
                if "already allocated" not in refused.words:
                    raise
                last = refused
            else:
                return port
        raise AssertionError(f"no node port is free: {last}")

    def routable(self) -> int:
        """Ready addresses behind the deployment's Service."""
        slices = self.cluster.find(
            "endpointslices", self.namespace, labelSelector=f"kubernetes.io/service-name={self.name}"
        )
        return sum(e.get("conditions", {}).get("ready") is True for s in slices for e in s.get("endpoints") or [])

    def gone(self) -> bool:
        return self.cluster.get("modeldeployments", self.namespace, self.name) is None

    def follow(self, seconds: float = SERVING) -> list[dict[str, Any]]:
        """Watches until Ready; returns each change of phase with the seconds since the call and what was said."""
        begun = time.monotonic()
        seen: list[dict[str, Any]] = []

        def look() -> bool:
            live = self.get()
            status = live.get("status", {})
            kinds = sorted(c["type"] for c in status.get("conditions", []) if c["status"] == "True")
            read = kstatus(live["metadata"]["generation"], status)
            step = {"phase": status.get("phase"), "true": kinds, "kstatus": read}
            if not seen or {k: seen[-1][k] for k in step} != step:
                seen.append({"at": round(time.monotonic() - begun, 2), **step, "message": status.get("message", "")})
            assert "Ready" in kinds, self.words()
            return bool(status.get("observedGeneration") == live["metadata"]["generation"])

        eventually(look, seconds, f"{self.name} is Ready", every=0.2)
        return seen


def settled(deployment: ModelDeployment, replicas: int, seconds: float = SOON) -> None:
    """Waits until only wanted pods are left, of one revision, all ready."""

    def look() -> bool:
        pods = deployment.pods(ending=True)
        assert len(pods) == replicas == len(deployment.ready_pods()), [p["metadata"]["name"] for p in pods]
        return len({pod["metadata"]["labels"][REVISION] for pod in pods}) <= 1

    eventually(look, seconds, f"{deployment.name} has {replicas} pods of one revision and no other")
