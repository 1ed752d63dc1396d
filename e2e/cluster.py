"""The cluster under test: kubectl where a user would type it, the raw API where a test only looks."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

import yaml
from kubernetes import config
from kubernetes.client import ApiClient
from kubernetes.client.exceptions import ApiException

Object = dict[str, Any]

#: Of things that only the API server and a controller take part in.
SOON = 60.0
#: Until a model pod serves: image, volume, load, warm-up, on two busy cores.
SERVING = 240.0
#: A kubelet looks at its images every half minute, and tells of them with its next status.
TELLING_SECONDS = 90.0

PATHS = {
    "pods": "/api/v1/namespaces/{}/pods",
    "services": "/api/v1/namespaces/{}/services",
    "configmaps": "/api/v1/namespaces/{}/configmaps",
    "secrets": "/api/v1/namespaces/{}/secrets",
    "events": "/api/v1/namespaces/{}/events",
    "persistentvolumeclaims": "/api/v1/namespaces/{}/persistentvolumeclaims",
    "replicasets": "/apis/apps/v1/namespaces/{}/replicasets",
    "statefulsets": "/apis/apps/v1/namespaces/{}/statefulsets",
    "poddisruptionbudgets": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
    "networkpolicies": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "endpointslices": "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices",
    "modeldeployments": "/apis/plimsoll.dev/v1alpha1/namespaces/{}/modeldeployments",
    "quantizationjobs": "/apis/plimsoll.dev/v1alpha1/namespaces/{}/quantizationjobs",
    "jobs": "/apis/batch/v1/namespaces/{}/jobs",
    "nodes": "/api/v1/nodes",
    "persistentvolumes": "/api/v1/persistentvolumes",
}


class NoClusterError(Exception):
    """Nothing answers where KUBECONFIG points, or it points nowhere."""


class RefusedError(Exception):
    """The API server said no, with this status and these words."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(f"{status}: {words}")
        self.status, self.words = status, words


def eventually(look: Callable[[], Any], seconds: float, what: str, every: float = 0.5) -> Any:
    """Polls until `look` gives something true and returns that. An AssertionError in `look` counts as not yet."""
    until = time.monotonic() + seconds
    seen: Any = None
    while True:
        try:
            seen = look()
        except AssertionError as error:
            seen, found = error, False
        else:
            found = bool(seen)
        if found:
            return seen
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds:.0f} s: {what} (last seen: {str(seen)[:2000]})")
        time.sleep(every)


class Cluster:
    """One cluster, as KUBECONFIG names it.

    Raises:
        NoClusterError: there is none.
    """

    def __init__(self) -> None:
        if shutil.which("kubectl") is None:
            raise NoClusterError("kubectl is not in PATH")
        try:
            self.client: ApiClient = config.new_client_from_config()
            self.version = self.api("GET", "/version", timeout=5)["gitVersion"]
        except Exception as error:  # a missing file, a wrong one, and whatever a connection can fail with
            where = os.environ.get("KUBECONFIG", "~/.kube/config")
            raise NoClusterError(f"{where}: {str(error).splitlines()[0]}") from None

    def api(self, method: str, path: str, body: Any = None, *, kind: str = "json", timeout: float = 30) -> Any:
        """One request, JSON both ways. `kind` is the patch's: json (not a patch), merge-patch, json-patch, …

        Raises:
            RefusedError: an answer of 400 or above.
        """
        content = "application/json" if kind == "json" else f"application/{kind}+json"
        headers = {"Accept": "application/json", "Content-Type": content}
        self.client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        try:
            answer = self.client.call_api(
                method, self.client.configuration.host + path, headers, body, _request_timeout=timeout
            )
            data = answer.read()
        except ApiException as error:
            raise RefusedError(error.status, str(error.body)) from None
        if answer.status >= 400:
            raise RefusedError(answer.status, data.decode(errors="replace"))
        return json.loads(data) if data[:1] in (b"{", b"[") else data.decode()

    def find(self, resource: str, namespace: str = "", **query: str) -> list[Object]:
        """Objects of a kind; `query` holds labelSelector, fieldSelector."""
        path = PATHS[resource].format(namespace) + ("?" + urlencode(query) if query else "")
        return self.api("GET", path)["items"]

    def get(self, resource: str, namespace: str, name: str) -> Object | None:
        """An object, or None where there is none of that name."""
        try:
            return self.api("GET", f"{PATHS[resource].format(namespace)}/{name}")
        except RefusedError as refused:
            if refused.status == 404:
                return None
            raise

    def patch(self, resource: str, namespace: str, name: str, change: Any, kind: str = "merge-patch") -> Object:
        return self.api("PATCH", f"{PATHS[resource].format(namespace)}/{name}", change, kind=kind)

    def delete(self, resource: str, namespace: str, name: str) -> None:
        try:
            self.api("DELETE", f"{PATHS[resource].format(namespace)}/{name}")
        except RefusedError as refused:
            if refused.status != 404:
                raise

    def kubectl(self, *arguments: str, stdin: str | bytes | None = None, timeout: float = 120) -> str:
        """What kubectl prints. An exit status above 0 is a failure that quotes it."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(["kubectl", *arguments], input=data, capture_output=True, timeout=timeout)
        words = done.stdout.decode(errors="replace")
        if done.returncode:
            raise RefusedError(
                done.returncode, f"kubectl {' '.join(arguments)}: {done.stderr.decode(errors='replace')}"
            )
        return words

    def apply(self, *manifests: Mapping[str, Any], server_side: bool = False) -> str:
        """`kubectl apply`, as a user does."""
        more = ("--server-side", "--force-conflicts") if server_side else ()
        return self.kubectl("apply", *more, "-f", "-", stdin=yaml.safe_dump_all([dict(m) for m in manifests]))

    def nodes(self) -> list[Object]:
        """Nodes that run containers: played ones (KWOK's) are left out."""
        real = (n for n in self.find("nodes") if n["metadata"].get("labels", {}).get("type") != "kwok")
        return [node for node in real if is_true(node["status"].get("conditions", []), "Ready")]

    def images(self) -> set[str]:
        """Names of the images that nodes say they have (the largest fifty of each)."""
        known = (image for node in self.find("nodes") for image in node["status"].get("images", []))
        return {name for image in known for name in image.get("names") or []}

    def has_image(self, image: str) -> bool:
        """Whether a node tells of it. Where a skip is a failure, one that was loaded just now is waited for."""
        until = time.monotonic() + (TELLING_SECONDS if os.environ.get("PLIMSOLL_E2E_REQUIRED") == "1" else 0)
        while not any(name == image or name.endswith("/" + image) for name in self.images()):
            if time.monotonic() > until:
                return False
            time.sleep(1.0)
        return True


def host_address(cluster: Cluster) -> str:
    """This machine's address as nodes reach it."""
    [address, *_] = [
        a["address"] for n in cluster.nodes() for a in n["status"]["addresses"] if a["type"] == "InternalIP"
    ]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        return probe.getsockname()[0]


def is_true(conditions: Iterable[Mapping[str, Any]], kind: str) -> bool:
    return any(c["type"] == kind and c["status"] == "True" for c in conditions)


def millicores(quantity: str | int | float) -> int:
    """`2`, `500m` in thousandths of a processor."""
    text = str(quantity)
    return int(text[:-1]) if text.endswith("m") else int(float(text) * 1000)


def free_cpu(cluster: Cluster, node: Mapping[str, Any]) -> int:
    """Thousandths of a processor that no pod on the node has asked for."""
    taken = 0
    query = {"fieldSelector": f"spec.nodeName={node['metadata']['name']},status.phase!=Succeeded,status.phase!=Failed"}
    for pod in cluster.api("GET", f"/api/v1/pods?{urlencode(query)}")["items"]:
        taken += sum(
            millicores(c.get("resources", {}).get("requests", {}).get("cpu", 0)) for c in pod["spec"]["containers"]
        )
    return millicores(node["status"]["allocatable"]["cpu"]) - taken
