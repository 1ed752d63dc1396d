"""A stand-in for metrics-server, in a pod of the test's own: of each pod it says the use that it was told.

Standard library alone, for it runs in whatever image has Python. It answers for `metrics.k8s.io/v1beta1` behind the API
server: pods of a namespace by label selector, `GET /apis/.../asked` (every selector that somebody asked by), and
`PUT /apis/.../use` (thousandths of a processor, from now on).
"""

import json
import ssl
import urllib.request
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

GROUP = "/apis/metrics.k8s.io/v1beta1"
PORT = 8443
MOUNT = Path("/claim")
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

told: dict[str, Any] = {"use": 0}
asked: list[str] = []


def pods(namespace: str, selector: str) -> list[dict[str, Any]]:
    """Those that run, as the pod's own account sees them."""
    url = f"https://kubernetes.default.svc/api/v1/namespaces/{namespace}/pods?labelSelector={quote(selector)}"
    headers = {"Authorization": f"Bearer {(_ACCOUNT / 'token').read_text()}"}
    trusted = ssl.create_default_context(cafile=str(_ACCOUNT / "ca.crt"))
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), context=trusted, timeout=10) as answer:
        found = json.load(answer)["items"]
    return [pod for pod in found if pod["status"]["phase"] == "Running"]


def metrics(pod: dict[str, Any]) -> dict[str, Any]:
    """As metrics-server has it; the window is short so that a pod that is ready counts at once."""
    use = {"cpu": f"{told['use']}m", "memory": "100Mi"}
    return {
        "metadata": {key: pod["metadata"][key] for key in ("name", "namespace", "labels")},
        "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "window": "1s",
        "containers": [{"name": container["name"], "usage": use} for container in pod["spec"]["containers"]],
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        match url.path.removeprefix(GROUP).strip("/").split("/"):
            case [""]:
                resource = {"name": "pods", "singularName": "", "namespaced": True, "kind": "PodMetrics"}
                self._answer(
                    {
                        "kind": "APIResourceList",
                        "groupVersion": "metrics.k8s.io/v1beta1",
                        "resources": [{**resource, "verbs": ["get", "list"]}],
                    }
                )
            case ["asked"]:
                self._answer(asked)
            case ["namespaces", namespace, "pods"]:
                [selector] = parse_qs(url.query).get("labelSelector", [""])
                asked.append(selector)
                found = [metrics(pod) for pod in pods(namespace, selector)]
                self._answer({"kind": "PodMetricsList", "apiVersion": "metrics.k8s.io/v1beta1", "items": found})
            case _:
                self._answer({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"}, 404)

    def do_PUT(self) -> None:
        told["use"] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(told)

    def _answer(self, body: Any, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    server = ThreadingHTTPServer(("", PORT), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(MOUNT / "tls.crt", MOUNT / "tls.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
