"""Helm renders the chart; without Helm these tests say so and skip."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Objects = list[dict[str, Any]]
#: Helm alone knows no cluster, and some builds of it take it for a very old one.
KUBERNETES = "1.34.0"


@pytest.fixture(scope="session")
def chart(repository: Path) -> Path:
    return repository / "charts" / "plimsoll"


@pytest.fixture(scope="session")
def render(chart: Path) -> Callable[..., Objects]:
    """render(values, apis=…, name=…, namespace=…) gives what Helm would send. Raises ValueError in Helm's words."""
    helm = shutil.which("helm")
    if helm is None:
        pytest.skip("helm is not on PATH: the chart is not rendered")

    def rendered(
        values: dict[str, Any] | None = None,
        *,
        apis: tuple[str, ...] = (),
        name: str = "plimsoll",
        namespace: str = "plimsoll-system",
    ) -> Objects:
        command = [helm, "template", name, str(chart), "--namespace", namespace, "--kube-version", KUBERNETES]
        command += ["--values", "-", *(part for api in apis for part in ("--api-versions", api))]
        done = subprocess.run(command, input=json.dumps(values or {}), capture_output=True, text=True)
        if done.returncode:
            raise ValueError(done.stderr)
        return [document for document in yaml.safe_load_all(done.stdout) if document]

    return rendered
