"""`plimsoll pod` as a process of its own, as a container runs it: manifest in the environment, last words in a file."""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.support.endpoint import eventually
from tests.support.processes import engines

COMMAND = (sys.executable, "-m", "plimsoll.cli.main", "pod", "--host", "127.0.0.1", "--port", "0", "--status-port", "0")


def manifest(model: Path | str, **spec: Any) -> dict[str, Any]:
    """What the operator hands a pod, for a tiny model."""
    small: dict[str, Any] = {
        "model": {"source": f"file://{model}", "servedName": "tiny"},
        "accelerator": {"resource": "cpu", "memory": "1Gi"},
        "precision": "float32",
        "kvCache": {"ratio": 0.02, "blockSize": 16},
        "rollout": {"drainTimeout": "30s"},
        "pod": {"cpu": 1},
    }
    return {
        "apiVersion": "plimsoll.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "tiny", "namespace": "models"},
        "spec": small | spec,
    }


class PodProcess:
    """A running `plimsoll pod`; its ports are known from its log."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path, words: Path) -> None:
        self.process, self.log, self.words = process, log, words

    def lines(self) -> list[dict[str, Any]]:
        """The log so far; every line of it is a JSON object."""
        return [json.loads(line) for line in self.log.read_text().splitlines(True) if line.endswith("\n")]

    def _said(self, event: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        def said() -> bool:
            found[:] = [line for line in self.lines() if line["event"] == event]
            return bool(found) or self.process.poll() is not None

        eventually(said, 60)
        assert found, f"it ended without {event!r}: {self.log.read_text()}"
        return found[0]

    @property
    def status_url(self) -> str:
        return f"http://127.0.0.1:{self._said('listening')['status']}"

    @property
    def url(self) -> str:
        return str(self._said("loading")["url"])

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")

    @property
    def port(self) -> int:
        found = re.search(r":(\d+)/", self.url)
        assert found is not None
        return int(found[1])

    def get(self, path: str) -> httpx.Response:
        """Asks the status port."""
        return httpx.get(self.status_url + path, timeout=60)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/status").json()
        return found

    def ready(self) -> "PodProcess":
        url = self.status_url
        eventually(lambda: self.process.poll() is not None or httpx.get(f"{url}/ready").status_code == 200, 120)
        assert self.process.poll() is None, self.log.read_text()
        return self

    @property
    def engine(self) -> psutil.Process:
        [engine] = engines(self.process.pid)
        return engine

    def wait(self, seconds: float = 60) -> int:
        return self.process.wait(seconds)


@contextlib.contextmanager
def pod_process(folder: Path, deployment: Any, **environment: str) -> Iterator[PodProcess]:
    """Runs until the block ends; whatever is left then is killed."""
    folder.mkdir(exist_ok=True)
    log, words = folder / "log", folder / "termination-log"
    text = deployment if isinstance(deployment, str) else json.dumps(deployment)
    given = {"PLIMSOLL_DEPLOYMENT": text, "PLIMSOLL_TERMINATION_LOG": str(words), **environment}
    with log.open("wb") as file, subprocess.Popen(
        COMMAND, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env={**os.environ, **given}
    ) as process:  # fmt: skip
        try:
            yield PodProcess(process, log, words)
        finally:
            if process.poll() is None:
                process.kill()
