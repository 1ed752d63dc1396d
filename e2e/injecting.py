"""A mutating webhook as a service mesh brings one: it adds to every pod of a namespace while a test runs."""

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from e2e.certificates import self_signed
from e2e.cluster import Cluster, Object, host_address

_HOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
SIDECAR = "mesh-proxy"
#: As OpenShift's restricted-v2 takes one from the namespace's range.
ASSIGNED = 1000710000
#: Ends by SIGTERM alone, as those of meshes do.
_WAITS = ["python3", "-c", "import signal, sys; signal.signal(15, lambda *_: sys.exit()); signal.pause()"]


def additions(pod: Object, image: str) -> list[Object]:
    """JSON patch: a container that never ends, and a user ID where the pod names none."""
    sidecar = {
        "name": SIDECAR, "image": image, "command": _WAITS,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
    }  # fmt: skip
    # Meshes put theirs first or last; what looks at the first container alone meets this one.
    changes: list[Object] = [{"op": "add", "path": "/spec/containers/0", "value": sidecar}]
    context = pod["spec"].get("securityContext") or {}
    if "runAsUser" not in context:
        given = {**context, "runAsUser": ASSIGNED, "fsGroup": ASSIGNED}
        changes.append({"op": "add", "path": "/spec/securityContext", "value": given})
    return changes


@contextmanager
def injecting(cluster: Cluster, namespace: str, image: str, folder: Path) -> Iterator[None]:
    """Adds `additions` to every new pod of the namespace. `image` has Python, `folder` takes the certificate."""
    address = host_address(cluster)
    certificate, key = self_signed(address)
    (folder / "tls.pem").write_bytes(certificate + key)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["request"]
            patch = base64.b64encode(json.dumps(additions(asked["object"], image)).encode()).decode()
            response: dict[str, Any] = {"uid": asked["uid"], "allowed": True, "patchType": "JSONPatch", "patch": patch}
            body = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer((address, 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hook = {
        "name": "mesh.e2e.plimsoll.dev", "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "clientConfig": {
            "url": f"https://{address}:{server.server_port}/", "caBundle": base64.b64encode(certificate).decode(),
        },
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
    }  # fmt: skip
    cluster.api("POST", _HOOKS, {"metadata": {"name": namespace}, "webhooks": [hook]})
    try:
        yield
    finally:
        cluster.api("DELETE", f"{_HOOKS}/{namespace}")
        server.shutdown()
