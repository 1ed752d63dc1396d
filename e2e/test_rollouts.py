"""Changes of a serving deployment, under traffic: none of its requests fails."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread

import pytest

from e2e.cluster import SERVING, SOON, RefusedError, eventually, free_cpu
from e2e.deployments import REVISION, ModelDeployment, settled
from e2e.scene import Scene
from e2e.traffic import Report, traffic

Serve = Callable[..., tuple[ModelDeployment, str]]


@dataclass
class Seen:
    """What stood behind the Service while somebody watched."""

    fewest: int = 1 << 30
    most_pods: int = 0
    stages: list[str] = field(default_factory=list)


@contextmanager
def watched(deployment: ModelDeployment) -> Iterator[Seen]:
    seen, stop = Seen(), Event()

    def look() -> None:
        while not stop.wait(0.3):
            try:
                seen.fewest = min(seen.fewest, deployment.routable())
                seen.most_pods = max(seen.most_pods, len(deployment.pods(ending=True)))
                progressing = [c for c in deployment.status.get("conditions", []) if c["type"] == "Progressing"]
            except Exception:
                continue  # the API server may be away: that is a scenario's business, not the watcher's
            for condition in progressing:
                if seen.stages[-1:] != [condition["reason"]]:
                    seen.stages.append(condition["reason"])

    thread = Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join(SOON)


def revisions(deployment: ModelDeployment) -> set[str]:
    return {pod["metadata"]["labels"][REVISION] for pod in deployment.pods()}


def changed_under_traffic(deployment: ModelDeployment, url: str) -> tuple[Report, Seen]:
    """Another revision of two replicas, from the change until it has settled, with requests all the while."""
    with traffic(url, deployment.name) as report, watched(deployment) as seen:
        report.mark("spec changed")
        deployment.patch(serving={"maxRunningRequests": 16})
        deployment.ready()
        settled(deployment, 2, SERVING)
        report.mark("settled")
        report.more(2)
    return report, seen


def test_a_rollout_by_surge_fails_no_request(scene: Scene, serving: Serve) -> None:
    deployment, url = serving(replicas=2, rollout={"strategy": "Surge"})
    before, first = deployment.identities(), revisions(deployment)
    report, seen = changed_under_traffic(deployment, url)
    scene.result.note(traffic=report.figures(), fewestServing=seen.fewest, stages=seen.stages)
    scene.result.note(words=f"fewest serving {seen.fewest}, most pods {seen.most_pods}, {'>'.join(seen.stages)}")
    report.assert_none_failed()
    assert not before & deployment.identities()
    assert not first & revisions(deployment)
    assert seen.fewest >= 2
    assert seen.most_pods > 2


@pytest.mark.cluster_wide
def test_a_rollout_with_no_room_replaces_and_fails_no_request(scene: Scene, serving: Serve) -> None:
    node = max(scene.cluster.nodes(), key=lambda n: free_cpu(scene.cluster, n))
    others = "app.kubernetes.io/name!=plimsoll-operator"
    eventually(
        lambda: not scene.cluster.find("pods", scene.namespace, labelSelector=others), SOON, "the helper pod is gone"
    )
    cpu = free_cpu(scene.cluster, node) // 2 - 20
    place = {"kubernetes.io/hostname": node["metadata"]["labels"]["kubernetes.io/hostname"]}
    deployment, url = serving(replicas=2, pod={"cpu": f"{cpu}m", "nodeSelector": place}, rollout={"strategy": "Auto"})
    before = deployment.identities()
    report, seen = changed_under_traffic(deployment, url)
    scene.result.note(traffic=report.figures(), fewestServing=seen.fewest, stages=seen.stages, cpu=cpu)
    scene.result.note(words=f"fewest serving {seen.fewest}, {cpu}m each of {free_cpu(scene.cluster, node)}m left")
    report.assert_none_failed()
    assert not before & deployment.identities()
    assert seen.fewest >= 1
    assert "Replacing" in seen.stages


@pytest.mark.long
def test_a_rollout_that_a_quota_stops_from_surging_replaces(scene: Scene, serving: Serve) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "full", "namespace": scene.namespace},
        "spec": {"hard": {"requests.cpu": "100m"}},
    }
    deployment, url = serving(replicas=2)
    scene.cluster.apply(quota)
    with traffic(url, deployment.name) as report, watched(deployment) as seen:
        deployment.patch(serving={"maxRunningRequests": 16})
        deployment.ready()
        settled(deployment, 2, SERVING)
        report.more(2)
    scene.result.note(traffic=report.figures(), fewestServing=seen.fewest, stages=seen.stages)
    report.assert_none_failed()
    assert seen.fewest >= 1


def test_a_revert_in_the_middle_keeps_what_served(scene: Scene, serving: Serve) -> None:
    deployment, url = serving(replicas=2, rollout={"strategy": "Surge"})
    before, [first] = deployment.identities(), revisions(deployment)
    with traffic(url, deployment.name) as report, watched(deployment) as seen:
        deployment.patch(serving={"maxRunningRequests": 16})
        report.mark("spec changed")
        eventually(lambda: len(revisions(deployment)) == 2, SOON, "a pod of the new revision exists")
        deployment.patch(serving={"maxRunningRequests": None})
        report.mark("reverted")
        deployment.ready()
        settled(deployment, 2, SERVING)
        report.more(2)
    scene.result.note(traffic=report.figures(), fewestServing=seen.fewest, stages=seen.stages)
    report.assert_none_failed()
    assert revisions(deployment) == {first}
    assert deployment.identities() == before, "pods that served the wanted revision were replaced"
    assert seen.fewest >= 2


def test_scaling_one_to_three_to_one_fails_no_request(scene: Scene, serving: Serve) -> None:
    deployment, url = serving()
    [keeps] = deployment.identities()
    scale = ("scale", f"modeldeployment/{deployment.name}", "-n", scene.namespace)
    with traffic(url, deployment.name) as report, watched(deployment) as seen:
        scene.cluster.kubectl(*scale, "--replicas=3")
        report.mark("scaled to 3")
        settled(deployment, 3, SERVING)
        deployment.ready()
        assert keeps in deployment.identities(), "scaling restarted a pod"
        report.mark("three are ready")
        report.more(3)
        scene.cluster.kubectl(*scale, "--replicas=1")
        report.mark("scaled to 1")
        settled(deployment, 1, SERVING)
        deployment.ready()
        report.mark("one is left")
        report.more(2)
    scene.result.note(traffic=report.figures(), fewestServing=seen.fewest, stages=seen.stages)
    report.assert_none_failed()
    assert seen.fewest >= 1

    def counted() -> bool:
        """Numbers that nobody waits for are written some seconds later."""
        live = scene.cluster.kubectl(
            "get", f"mdep/{deployment.name}", "-n", scene.namespace, "-o",
            "jsonpath={.spec.replicas} {.status.replicas}",
        )  # fmt: skip
        return live == "1 1"

    eventually(counted, SOON, "/scale counts one")
    with pytest.raises(RefusedError, match=r"greater than|less than|Invalid"):
        scene.cluster.kubectl(*scale, "--replicas=-1")
