"""Files in claims: written through a pod, so that it works wherever claims do."""

import hashlib
import secrets
import subprocess
from collections.abc import Sequence
from pathlib import Path

from e2e.cluster import SERVING, Cluster, eventually
from e2e.pods import helper_pod

#: Says whether a file is there, whole. argv: path, sha256.
_CHECK = """
import hashlib, os, sys
path, digest = sys.argv[1:]
print(os.path.exists(path) and hashlib.file_digest(open(path, "rb"), "sha256").hexdigest() == digest)
"""
#: Leaves only these files and folders of a claim. argv: the names at its top.
_EMPTY = """
import os, shutil, sys
for one in os.scandir("/claim"):
    if one.name not in sys.argv[1:]: (shutil.rmtree if one.is_dir(follow_symlinks=False) else os.unlink)(one.path)
"""
#: Writes standard input to a file, in place of one that a server may have mapped. argv: path.
_RECEIVE = """
import os, shutil, sys
os.makedirs(os.path.dirname(sys.argv[1]), exist_ok=True)
with open(sys.argv[1] + ".part", "wb") as file: shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
os.replace(sys.argv[1] + ".part", sys.argv[1])
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


def put(
    cluster: Cluster, namespace: str, claim_name: str, files: Sequence[tuple[Path, str]], image: str,
    alone: bool = False,
) -> None:  # fmt: skip
    """Copies each file to its path inside the claim. `image` has Python; the model runtime's does.

    With `alone` what else lies there goes first: a volume that is claimed again holds what scenarios before this one,
    or runs before, left in it (`hand_back`), and a job would find its output finished.
    """
    # A name of its own: the pod of a call before this one may still be on its way out, and `apply` would take that one.
    name = f"put-{claim_name}-{secrets.token_hex(3)}"
    waits = ["python3", "-c", "import signal; signal.sigwait([signal.SIGTERM, signal.SIGINT])"]
    cluster.apply(helper_pod(namespace, name, image, waits, claim_name))

    def running() -> bool:
        found = cluster.get("pods", namespace, name)
        return found is not None and found["status"].get("phase") == "Running"

    try:
        eventually(running, SERVING, f"pod {name} holds claim {claim_name}")
        within = ("-n", namespace, name, "--", "python3", "-c")
        if alone:
            cluster.kubectl("exec", *within, _EMPTY, *(Path(inside).parts[0] for _, inside in files))
        for path, inside in files:
            check = ("exec", *within, _CHECK, f"/claim/{inside}", hashlib.sha256(path.read_bytes()).hexdigest())
            # A process that ended without reading all of its input would keep kubectl waiting for a minute.
            if cluster.kubectl(*check).strip() != "True":
                with path.open("rb") as data:
                    command = ["kubectl", "exec", "-i", *within, _RECEIVE, f"/claim/{inside}"]
                    subprocess.run(command, stdin=data, check=True, timeout=300)
                assert cluster.kubectl(*check).strip() == "True", f"{inside} did not arrive whole"
    finally:
        gone = ("--ignore-not-found", "--grace-period=1", "--wait=false")
        cluster.kubectl("delete", "pod", name, "-n", namespace, *gone)


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
