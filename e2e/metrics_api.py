"""`metrics.k8s.io` where nothing serves it: the pod of metrics_server.py behind an APIService while a test runs."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e import metrics_server
from e2e.certificates import self_signed
from e2e.cluster import SERVING, Cluster, RefusedError, eventually
from e2e.pods import helper_pod

NAME = "metrics"
_APIS = "/apis/apiregistration.k8s.io/v1/apiservices"
_API = "v1beta1.metrics.k8s.io"


class MetricsAPI:
    """The stand-in, asked through the API server as an autoscaler asks it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def uses(self, millicores: int) -> None:
        """Each container of every pod, from now on."""
        self._cluster.api("PUT", f"{metrics_server.GROUP}/use", millicores)

    def asked(self) -> list[str]:
        """Label selectors that were asked by."""
        return list(self._cluster.api("GET", f"{metrics_server.GROUP}/asked"))


@contextmanager
def metrics_api(cluster: Cluster, namespace: str, image: str) -> Iterator[MetricsAPI]:
    """Skips where the cluster has metrics of its own. `image` has Python."""
    if any(one["metadata"]["name"] == _API for one in cluster.api("GET", _APIS)["items"]):
        pytest.skip("this cluster has a metrics API of its own")
    certificate, key = self_signed(f"{NAME}.{namespace}.svc")
    meta = {"name": NAME, "namespace": namespace}
    script = Path(metrics_server.__file__).read_text()
    pod = helper_pod(namespace, NAME, image, ["python3", str(metrics_server.MOUNT / "server.py")])
    pod["metadata"]["labels"] = {"app": NAME}
    pod["spec"]["automountServiceAccountToken"] = True
    sources = [{"configMap": {"name": NAME}}, {"secret": {"name": NAME}}]
    pod["spec"]["volumes"] = [{"name": "files", "projected": {"sources": sources}}]
    pod["spec"]["containers"][0]["volumeMounts"] = [{"name": "files", "mountPath": str(metrics_server.MOUNT)}]
    rbac = "rbac.authorization.k8s.io"
    service = {
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": _API},
        "spec": {
            "group": "metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100,
            "service": {"name": NAME, "namespace": namespace}, "caBundle": base64.b64encode(certificate).decode(),
        },
    }  # fmt: skip
    cluster.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"server.py": script}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": meta,
         "stringData": {"tls.crt": certificate.decode(), "tls.key": key.decode()}},
        {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": meta,
         "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]},
        {"apiVersion": f"{rbac}/v1", "kind": "RoleBinding", "metadata": meta,
         "roleRef": {"apiGroup": rbac, "kind": "Role", "name": NAME},
         "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}]},
        {"apiVersion": "v1", "kind": "Service", "metadata": meta,
         "spec": {"selector": {"app": NAME}, "ports": [{"port": 443, "targetPort": metrics_server.PORT}]}},
        pod,
        service,
    )  # fmt: skip
    made = MetricsAPI(cluster)

    def answers() -> bool:
        try:
            return made.asked() is not None
        except RefusedError as refused:
            raise AssertionError(refused) from None

    try:
        eventually(answers, SERVING, "the metrics API answers")
        yield made
    finally:
        # Before its pod: discovery of a group that nobody answers for keeps every namespace from ending.
        cluster.api("DELETE", f"{_APIS}/{_API}")
