"""What is ours is kept as it should be, what is not is left alone, and nothing stays behind."""

import time
from collections.abc import Callable

import pytest

from e2e.cluster import SOON, eventually
from e2e.deployments import CLAIM, ModelDeployment
from e2e.scene import Scene

Serve = Callable[..., tuple[ModelDeployment, str]]


def test_deleting_removes_everything_and_leaves_claims(scene: Scene) -> None:
    deployment = scene.deploy(rollout={"drainTimeout": "5s"})
    deployment.ready()
    kinds = {name.partition("/")[0].partition(".")[0] for name in deployment.owned()}
    assert kinds >= {"pod", "replicaset", "service", "poddisruptionbudget", "networkpolicy"}
    live = deployment.get()
    assert not live["metadata"].get("finalizers"), "a finalizer, where owner references do"
    assert not [key for key in live["metadata"].get("annotations", {}) if "kopf" in key]
    deployment.delete()
    eventually(lambda: deployment.gone() and not deployment.owned(), 2 * SOON, "everything it owned is gone")
    assert scene.cluster.get("persistentvolumeclaims", scene.namespace, CLAIM) is not None
    scene.result.note(words=f"removed {', '.join(sorted(kinds))}")


def test_a_deployment_deleted_while_the_operator_is_away_is_removed_too(scene: Scene) -> None:
    deployment = scene.deploy(rollout={"drainTimeout": "5s"})
    deployment.ready()
    scene.operator.kill()
    deployment.delete()
    eventually(lambda: deployment.gone() and not deployment.owned(), 2 * SOON, "everything it owned is gone")


def test_drift_in_our_fields_is_put_back_and_other_fields_are_left_alone(scene: Scene, serving: Serve) -> None:
    deployment, _ = serving()
    cluster, namespace = scene.cluster, scene.namespace
    before = deployment.identities()
    service = cluster.get("services", namespace, deployment.name)
    assert service is not None
    where = f"service/{deployment.name}", "-n", namespace
    cluster.kubectl("patch", *where, "--type=merge", "-p", '{"spec":{"selector":{"plimsoll.dev/deployment":"other"}}}')
    eventually(
        lambda: _service(scene, deployment)["spec"]["selector"] == service["spec"]["selector"],
        SOON, "the Service's selector is put back",
    )  # fmt: skip
    cluster.kubectl("annotate", *where, "team.example/owner=us")
    cluster.kubectl("label", f"mdep/{deployment.name}", "-n", namespace, "team.example/tier=gold")

    def budget() -> dict | None:
        return cluster.get("poddisruptionbudgets", namespace, deployment.name)

    assert budget()
    cluster.delete("poddisruptionbudgets", namespace, deployment.name)
    eventually(budget, SOON, "the disruption budget is made again")

    [replica_set] = deployment.replica_sets()
    cluster.patch("replicasets", namespace, replica_set["metadata"]["name"], {"spec": {"replicas": 2}})

    def counted() -> bool:
        """The ReplicaSet's controller has acted on one replica: what it made of two is gone or going."""
        [live] = deployment.replica_sets()
        found = live["spec"]["replicas"], live["status"]["replicas"], live["status"]["observedGeneration"]
        assert found == (1, 1, live["metadata"]["generation"]), found
        return True

    eventually(counted, SOON, "a replica that nobody asked for is taken away")
    eventually(lambda: deployment.identities() == before, SOON, "the one that served is left")
    assert _service(scene, deployment)["metadata"]["annotations"]["team.example/owner"] == "us"
    deployment.ready()


def _service(scene: Scene, deployment: ModelDeployment) -> dict:
    found = scene.cluster.get("services", scene.namespace, deployment.name)
    assert found is not None
    return found


@pytest.mark.long
def test_an_unchanged_deployment_is_not_written(scene: Scene, serving: Serve) -> None:
    deployment, _ = serving()
    deployment.ready()

    def versions() -> dict[str, str]:
        kinds = ("services", "poddisruptionbudgets", "networkpolicies", "replicasets", "modeldeployments")
        return {
            f"{kind}/{o['metadata']['name']}": o["metadata"]["resourceVersion"]
            for kind in kinds
            for o in scene.cluster.find(kind, scene.namespace)
        }

    def written(seconds: float = 15.0) -> set[str]:
        first, until = versions(), time.monotonic() + seconds
        while time.monotonic() < until:
            if (now := versions()) != first:
                return {name for name, _ in now.items() ^ first.items()}
            time.sleep(0.5)
        return set()

    def at_rest() -> bool:
        assert not (found := written()), found
        return True

    # Whoever counts ready pods, other controllers too, says so a moment after they are.
    eventually(at_rest, 2 * SOON, "nothing is written any more")
    scene.cluster.kubectl("annotate", f"mdep/{deployment.name}", "-n", scene.namespace, "team.example/seen=yes")
    assert written() == set()


def test_two_deployments_of_one_model_inspect_it_once(scene: Scene) -> None:
    first = scene.deploy("first", replicas=0)
    first.wait("SourceReady")
    inspections = _inspections(scene)
    second = scene.deploy("second", replicas=0)
    second.wait("SourceReady", seconds=SOON)
    assert _inspections(scene) == inspections


def _inspections(scene: Scene) -> int:
    """Pods that the scheduler ever placed to look at a source."""
    events = scene.cluster.find("events", scene.namespace, fieldSelector="reason=Scheduled")
    return len({e["involvedObject"]["name"] for e in events if "inspect" in e["involvedObject"]["name"]})
