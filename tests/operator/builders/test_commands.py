"""What the pods run is what the `plimsoll` command takes."""

import subprocess
import sys

import pytest

from plimsoll.api.deployment import ModelDeploymentSpec
from plimsoll.operator import build
from tests.support.built import MINIMAL, SETTINGS, deployment, replica_set

SPEC = {
    **MINIMAL, "model": {"source": "hf://org/name"}, "parallelism": {"tensor": 2, "nodes": 2},
    "serving": {"speculativeTokens": 4, "draft": {"source": "hf://org/small"}},
}  # fmt: skip


def arguments() -> dict[str, list[str]]:
    pod = replica_set(SPEC)["spec"]["template"]["spec"]
    inspect = build.inspect_pod(deployment(SPEC), ModelDeploymentSpec.model_validate(SPEC), SETTINGS, True)["spec"]
    containers = [*pod["initContainers"], *pod["containers"], *inspect["containers"]]
    return {container["args"][0]: container["args"][1:] for container in containers}


@pytest.mark.parametrize("command", ["fetch", "inspect", "pod"])
def test_the_command_has_every_option_that_a_pod_gives_it(command: str) -> None:
    given = arguments()[command]
    run = [sys.executable, "-m", "plimsoll.cli.main", command, "--help"]
    done = subprocess.run(run, capture_output=True, text=True, check=True, env={"COLUMNS": "200", "TERM": "dumb"})
    missing = [option for option in given if option.startswith("--") and option not in done.stdout]
    assert not missing
