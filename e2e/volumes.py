"""Files in claims: written through a pod, so that it works wherever claims do."""

import hashlib
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from e2e.cluster import SERVING, Cluster, Object, eventually

#: Reads a file from standard input unless it is there already, whole. argv: path, sha256.
_RECEIVE = """
import hashlib, os, shutil, sys
path, digest = sys.argv[1:]
def whole(): return hashlib.file_digest(open(path, "rb"), "sha256").hexdigest() == digest
if os.path.exists(path) and whole(): print("there"); sys.exit()
os.makedirs(os.path.dirname(path), exist_ok=True)
with open(path, "wb") as file: shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
print("written" if whole() else "broken")
"""


def claim(cluster: Cluster, namespace: str, name: str, size: str = "1Gi") -> None:
    """A claim of the default StorageClass."""
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
        }
    )


def _pod(namespace: str, name: str, claim_name: str, image: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "fsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "keeper",
                    "image": image,
                    "command": ["python3", "-c", "import signal; signal.sigwait([signal.SIGTERM, signal.SIGINT])"],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
                    "volumeMounts": [{"name": "claim", "mountPath": "/claim"}],
                }
            ],
            "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": claim_name}}],
        },
    }


def put(cluster: Cluster, namespace: str, claim_name: str, files: Sequence[tuple[Path, str]], image: str) -> None:
    """Copies each file to its path inside the claim. `image` has Python; the model runtime's does."""
    name = f"put-{claim_name}"
    cluster.apply(_pod(namespace, name, claim_name, image))

    def running() -> bool:
        found = cluster.get("pods", namespace, name)
        return found is not None and found["status"].get("phase") == "Running"

    try:
        eventually(running, SERVING, f"pod {name} holds claim {claim_name}")
        for path, inside in files:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            command = ["kubectl", "exec", "-i", "-n", namespace, name, "--"]
            command += ["python3", "-c", _RECEIVE, f"/claim/{inside}", digest]
            with path.open("rb") as data:
                done = subprocess.run(command, stdin=data, capture_output=True, text=True, timeout=300)
            assert done.stdout.strip() in ("there", "written"), f"{shlex.join(command[:6])}: {done.stdout}{done.stderr}"
    finally:
        cluster.kubectl("delete", "pod", name, "-n", namespace, "--grace-period=1", "--wait=false")


def hand_back(cluster: Cluster, volumes: Sequence[str]) -> None:
    """Lets those that outlived their claim be claimed again, where no provisioner makes new ones.

    Only a handful may exist, and each scenario has a claim of its own.
    """
    for name in volumes:
        volume = cluster.get("persistentvolumes", "", name)
        if volume is not None and volume["status"].get("phase") == "Released":
            cluster.patch("persistentvolumes", "", name, {"spec": {"claimRef": None}})


def bound(cluster: Cluster, namespace: str) -> list[str]:
    """Names of the volumes that the namespace's claims hold."""
    claims = cluster.find("persistentvolumeclaims", namespace)
    return [c["spec"]["volumeName"] for c in claims if "volumeName" in c["spec"]]
