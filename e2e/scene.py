"""What most scenarios work with."""

import os
from dataclasses import dataclass, field
from typing import Any

import httpx

from e2e.cluster import SOON, Cluster, eventually
from e2e.deployments import ModelDeployment, manifest
from e2e.operators import Operator
from e2e.results import Result

NODE_HOST = os.environ.get("PLIMSOLL_E2E_NODE_HOST", "127.0.0.1")


@dataclass
class Scene:
    """What most scenarios work with: cluster, operator, the demo model in a claim, node ports."""

    cluster: Cluster
    namespace: str
    operator: Operator
    result: Result
    ports: list[int] = field(default_factory=list)

    def deploy(self, name: str = "smollm2", **spec: Any) -> ModelDeployment:
        self.cluster.apply(manifest(self.namespace, name, **spec))
        return ModelDeployment(self.cluster, self.namespace, name)

    def url(self, deployment: ModelDeployment, **more: Any) -> str:
        """Where a NodePort of the test's own answers for it, once it answers."""
        port = deployment.expose(self.ports, **more)
        self.ports.remove(port)
        url = f"http://{NODE_HOST}:{port}"
        eventually(lambda: _answers(url), SOON, f"{url} answers")
        return url


def _answers(url: str) -> bool:
    """Whether somebody listens there; proxies of Services take a moment to hear of a new one."""
    try:
        return httpx.get(f"{url}/v1/models", timeout=5).status_code < 500
    except httpx.TransportError:
        return False
