"""The operator under test: a process of this machine, or the chart's pods."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx
import yaml

from e2e.cluster import SOON, Cluster, eventually

ROOT = Path(__file__).resolve().parent.parent


#: The same code, calling itself another version. argv: the version.
_ANOTHER_VERSION = """
import sys, plimsoll
plimsoll.__version__ = sys.argv.pop()
from plimsoll.operator.main import main
sys.exit(main())
"""

#: What no cluster, however bad, makes an operator say.
_SLIPS = re.compile(r"AttributeError: [^\\\"]*|TypeError: [^\\\"]*|NameError: [^\\\"]*|this is a bug")


class Operator(Protocol):
    """What a scenario does to it."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None:
        """SIGKILL; nothing brings it back until `start`."""

    def upgrade(self) -> None:
        """Ends it and starts one that says it is another version."""

    def log(self) -> str: ...


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class LocalOperator:
    """`python -m plimsoll.operator.main` with the credentials of KUBECONFIG, for one namespace or all of them."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.port = free_port()
        self.settings = {**settings, "healthPort": self.port}
        self.process: subprocess.Popen[bytes] | None = None
        self.version = ""
        self.environment: dict[str, str] = {}
        """Of the process, over this one's: another KUBECONFIG, say."""

    @property
    def log_file(self) -> Path:
        return self.folder / "operator.log"

    def start(self, seconds: float = SOON) -> None:
        config = self.folder / "operator.yaml"
        config.write_text(yaml.safe_dump(self.settings))
        more = {"PLIMSOLL_OPERATOR_CONFIG": str(config), "PYTHONUNBUFFERED": "1", **self.environment}
        command = [sys.executable, "-m", "plimsoll.operator.main"]
        if self.version:
            command = [sys.executable, "-c", _ANOTHER_VERSION, self.version]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(command, env={**os.environ, **more}, cwd=ROOT, stdout=log, stderr=log)
        eventually(self.healthy, seconds, f"the operator answers /healthz; its log ends {self.log()[-1500:]}")

    def healthy(self) -> bool:
        ended = self.process is None or self.process.poll() is not None
        assert not ended, f"the operator ended: {self.log()[-3000:]}"
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/healthz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def metrics(self) -> str:
        return httpx.get(f"http://127.0.0.1:{self.port}/metrics", timeout=5).text

    def _end(self, how: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError("the operator did not end within 30 s of SIGTERM") from None

    def stop(self) -> None:
        self._end(signal.SIGTERM)
        slips = set(_SLIPS.findall(self.log()))
        assert not slips, f"the operator's log has {', '.join(sorted(slips))}"

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It sees and does nothing meanwhile; what happened reaches it afterwards, all at once."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def upgrade(self) -> None:
        self.stop()
        self.version = "99.0.0"
        self.start()

    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""


class ChartOperator:
    """charts/plimsoll, installed for the test and taken away after it."""

    RELEASE = "plimsoll-e2e"

    def __init__(self, cluster: Cluster, namespace: str, settings: dict[str, Any], image: str) -> None:
        self.cluster, self.namespace, self.settings, self.image = cluster, namespace, settings, image
        self.labels: dict[str, str] = {}

    def values(self) -> dict[str, Any]:
        repository, _, tag = self.image.rpartition(":")
        settings = {**self.settings}
        runtime, _, runtime_tag = settings.pop("runtimeImage").rpartition(":")
        cuda, _, cuda_tag = settings.pop("cudaRuntimeImage").rpartition(":")
        settings.pop("operatorNamespace", None)  # is the release's
        return {
            "image": {"repository": repository, "tag": tag},
            "runtime": {
                "image": {"repository": runtime, "tag": runtime_tag},
                "cudaImage": {"repository": cuda, "tag": cuda_tag},
            },
            "settings": settings,
            "podLabels": self.labels,
            "crds": {"install": False},  # the fixture `cluster` has applied them
        }

    def _helm(self, *arguments: str, stdin: str | None = None) -> None:
        done = subprocess.run(["helm", *arguments], input=stdin, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr}"

    def start(self) -> None:
        chart = str(ROOT / "charts" / "plimsoll")
        target = ("-n", self.namespace, "--create-namespace", "-f", "-", "--wait", "--timeout", "120s")
        self._helm("upgrade", "--install", self.RELEASE, chart, *target, stdin=yaml.safe_dump(self.values()))

    def stop(self) -> None:
        self._helm("uninstall", self.RELEASE, "-n", self.namespace, "--wait", "--ignore-not-found")

    def _deployment(self) -> str:
        selector = f"app.kubernetes.io/instance={self.RELEASE}"
        [name] = self.cluster.kubectl("get", "deploy", "-n", self.namespace, "-l", selector, "-o", "name").split()
        return name

    def kill(self) -> None:
        self.cluster.kubectl("scale", self._deployment(), "-n", self.namespace, "--replicas=0")
        pods = ("-l", f"app.kubernetes.io/instance={self.RELEASE}")
        self.cluster.kubectl("delete", "pods", "-n", self.namespace, *pods, "--grace-period=0", "--force")

    def upgrade(self) -> None:
        self.labels = {"e2e": f"upgraded-{int(time.time())}"}
        self.start()

    def log(self) -> str:
        pods = ("-l", f"app.kubernetes.io/instance={self.RELEASE}")
        return self.cluster.kubectl("logs", "-n", self.namespace, *pods, "--tail=-1", "--prefix")
