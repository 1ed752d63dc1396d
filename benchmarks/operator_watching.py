"""What the benchmark of the operator sees: watches of its own, /proc, metrics, the API server's audit log."""

import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from e2e.cluster import Cluster
from e2e.operators import LocalOperator

_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
#: What the operator makes or writes, and the pods that follow from it.
_KINDS = {
    "pods": "/api/v1/namespaces/{}/pods",
    "services": "/api/v1/namespaces/{}/services",
    "configmaps": "/api/v1/namespaces/{}/configmaps",
    "replicasets": "/apis/apps/v1/namespaces/{}/replicasets",
    "poddisruptionbudgets": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
    "networkpolicies": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "modeldeployments": "/apis/plimsoll.dev/v1alpha1/namespaces/{}/modeldeployments",
}
#: What a model that serves nobody at the moment says.
_PAGE = {
    "phase": "ready", "startup": {"load": {"bytes": 93000000, "total": 93000000, "seconds": 1.5},
    "warmup": {"seconds": 0.7}}, "observed": {"weights": 270000000, "kvCache": 300000000, "peak": 900000000},
    "running": 0, "waiting": 0, "cacheUsage": 0.0,
}  # fmt: skip


class Watch:
    """One watch from now on, in a thread: when each deployment got its first pod, became Ready, or was refused."""

    def __init__(self, cluster: Cluster, path: str, *, metadata_only: bool = False) -> None:
        self.of_deployment: dict[str, float] = {}
        self.ready: dict[str, float] = {}
        self.refused: dict[str, str] = {}
        self.seen: set[str] = set()
        self._cluster, self._path, self._metadata_only = cluster, path, metadata_only
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        version = self._cluster.api("GET", f"{self._path}?limit=1")["metadata"]["resourceVersion"]
        accept = _METADATA if self._metadata_only else "application/json"
        while True:
            url = f"{self._cluster.client.configuration.host}{self._path}?watch=1&resourceVersion={version}"
            pool = self._cluster.client.rest_client.pool_manager
            answer = pool.request("GET", url, headers={"Accept": accept}, preload_content=False, timeout=3600)
            rest = b""
            for chunk in answer.stream(1 << 16):
                now = time.monotonic()
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    event = msgspec.json.decode(line)
                    version = event["object"]["metadata"]["resourceVersion"]
                    self._note(event["type"], event["object"], now)

    def _note(self, kind: str, live: dict[str, Any], now: float) -> None:
        about = live["metadata"]
        if kind == "ADDED":
            self.seen.add(about["name"])
            owner = about.get("labels", {}).get("plimsoll.dev/deployment")
            if owner:
                self.of_deployment.setdefault(owner, now)
        for condition in (live.get("status") or {}).get("conditions") or ():
            if condition["type"] == "Ready" and condition["status"] == "True":
                self.ready.setdefault(about["name"], now)
            if condition["type"] == "Accepted" and condition["status"] == "False":
                self.refused.setdefault(about["name"], condition["message"])


class Process:
    """Memory and processor time of another process."""

    def __init__(self, pid: int) -> None:
        self.folder = Path(f"/proc/{pid}")

    def cpu_seconds(self) -> float:
        fields = (self.folder / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def memory(self) -> dict[str, float]:
        """Resident now, and at most since it began."""
        text = (self.folder / "status").read_text()
        found = {name: int(size) for name, size in re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", text, re.M)}
        return {"now": round(found["VmRSS"] / 1024, 1), "peak": round(found["VmHWM"] / 1024, 1)}


class Samples(dict[str, float]):
    """A page of metrics: samples without labels by name, all of them by name and labels."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.labelled: dict[tuple[str, str], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self[sample.name] = sample.value
                self.labelled[sample.name, json.dumps(sample.labels, sort_keys=True)] = sample.value

    def by(self, name: str) -> dict[str, float]:
        return {labels: value for (of, labels), value in self.labelled.items() if of == name}

    def total(self, name: str) -> float:
        return sum(self.by(name).values())

    def requests(self, verb: str) -> float:
        return sum(v for k, v in self.by("plimsoll_api_requests_total").items() if json.loads(k)["verb"] == verb)


def samples(operator: LocalOperator) -> Samples:
    return Samples(operator.metrics())


def api_writes(cluster: Cluster) -> Counter[str]:
    """Writes that the API server has answered, by verb and resource; everybody's, those of its own controllers too."""
    found: Counter[str] = Counter()
    pattern = re.compile(r"^apiserver_request_total\{(.*)\} (\S+)$", re.M)
    for labels, value in pattern.findall(cluster.api("GET", "/metrics")):
        has = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if has["verb"] in ("POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"):
            found[f"{has['verb']} {has['resource']}{'/' * bool(has['subresource'])}{has['subresource']}"] += int(
                float(value)
            )
    return found


class Audit:
    """The API server's audit log: who wrote what."""

    def __init__(self, path: Path | None, namespace: str) -> None:
        self.path, self.namespace = path, namespace

    def position(self) -> int:
        return self.path.stat().st_size if self.path else 0

    def writes(self, since: int) -> dict[str, int] | str:
        """Operators' writes in the namespace from a position on, by verb and resource, those of the lease too."""
        if self.path is None:
            return "no audit log"
        found: Counter[str] = Counter()
        with self.path.open("rb") as log:
            log.seek(since)
            for line in log:
                entry = msgspec.json.decode(line)
                ref = entry.get("objectRef", {})
                ours = entry.get("userAgent", "").startswith("plimsoll-operator")
                if not ours or ref.get("namespace", self.namespace) != self.namespace:
                    continue
                sub = f"/{ref['subresource']}" if ref.get("subresource") else ""
                status = entry.get("responseStatus", {}).get("code", 0)
                refused = f" ({status})" if status >= 400 else ""
                refused += " (dry run: nothing is written)" if "dryRun=All" in entry.get("requestURI", "") else ""
                found[f"{entry['verb']} {ref.get('resource')}{sub}{refused}"] += 1
        return dict(found)


def versions(cluster: Cluster, namespace: str) -> dict[str, tuple[str, str]]:
    """uid and resourceVersion of everything a deployment has; nodes' heartbeats and leases are not among it."""
    found = {}
    for kind, path in _KINDS.items():
        for item in cluster.api("GET", path.format(namespace), timeout=120)["items"]:
            about = item["metadata"]
            if about["name"] != "kube-root-ca.crt":
                found[f"{kind}/{about['name']}"] = (about["uid"], about["resourceVersion"])
    return found


def percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    return {
        **{name: round(ordered[min(len(ordered) - 1, int(len(ordered) * part))], 3) for name, part in at.items()},
        "most": round(ordered[-1], 3),
    }


def pages(port: int = 8001) -> None:
    """Status pages of models that serve and have nothing to do, on every address of this machine."""
    body = json.dumps(_PAGE).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 512
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """An operator that was killed hangs up."""

    server = Server(("", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def processor() -> str:
    text = Path("/proc/cpuinfo").read_text()
    name = re.search(r"^model name\s*:\s*(.*)$", text, re.M)
    return f"{name[1] if name else 'unknown'}, {text.count('processor')} cores"
