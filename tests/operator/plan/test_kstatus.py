"""Statuses as Flux, Argo CD and `kubectl wait` read them, over every phase a deployment goes through."""

from collections.abc import Callable

import pytest

from plimsoll.operator import build
from tests.support.gitops import HEALTH, argocd, kstatus
from tests.support.miniature import Cluster, spec


def first_start(cluster: Cluster) -> None:
    cluster.settle(40)


def rollout(cluster: Cluster) -> None:
    cluster.settle(40)
    cluster.change(context={"maxLength": 1024})


def bad_rollout(cluster: Cluster) -> None:
    rollout(cluster)
    cluster.bad = {build.revision(cluster.spec)}


def bad_start(cluster: Cluster) -> None:
    cluster.bad = {build.revision(cluster.spec)}


def refusal(cluster: Cluster) -> None:
    cluster.settle(40)
    cluster.change(accelerator={"resource": "cpu", "memory": "300Mi"})


def scaling(cluster: Cluster) -> None:
    cluster.settle(40)
    cluster.change(replicas=3)


def stopping(cluster: Cluster) -> None:
    cluster.settle(40)
    cluster.change(replicas=0)


@pytest.mark.parametrize(
    ("story", "ends", "phase"),
    [
        (first_start, "Current", "Ready"), (rollout, "Current", "Ready"), (bad_rollout, "Failed", "Degraded"),
        (bad_start, "Failed", "Degraded"), (refusal, "Failed", "Refused"), (scaling, "Current", "Ready"),
        (stopping, "Current", "Stopped"),
    ],
)  # fmt: skip
def test_every_step_of_a_story_reads_right(story: Callable[[Cluster], None], ends: str, phase: str) -> None:
    cluster = Cluster(spec=spec(), devices=4)
    story(cluster)
    seen = []
    for choice in range(60):
        # What a tool sees between the change and the operator's answer is never taken for done.
        if cluster.status["observedGeneration"] != cluster.generation:
            assert kstatus(cluster.generation, cluster.status) == "InProgress"
            assert argocd("ModelDeployment", cluster.generation, cluster.status) == "Progressing"
        cluster.act()
        read = kstatus(cluster.generation, cluster.status)
        assert argocd("ModelDeployment", cluster.generation, cluster.status) == HEALTH[read]
        seen.append((cluster.status["phase"], read))
        ready = cluster.condition("Ready")["status"] == "True"
        moves = cluster.condition("Progressing")["status"] == "True"
        if read == "Current":
            assert ready
            assert not moves
        if cluster.status["phase"] in ("Inspecting", "Pending", "Loading", "Downloading", "Updating"):
            assert read == "InProgress", cluster.status
        if cluster.status["phase"] == "Refused":
            assert read == "Failed"
        cluster.others_move(choice)
    assert seen[-1] == (phase, ends), seen
