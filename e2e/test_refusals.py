"""What cannot fit is refused with its sum, and no pod is made for it."""

import re

import pytest

from e2e.cluster import SERVING, SOON, eventually
from e2e.deployments import COMPONENT, DEPLOYMENT, ModelDeployment, manifest
from e2e.scene import Scene

#: Of the demo model nothing fits below some 300 MiB; each asks for another line, length or precision.
IMPOSSIBLE = [
    {"accelerator": {"memory": f"{100 + 10 * i}Mi"}, "precision": ("auto", "bfloat16", "float32")[i % 3]}
    for i in range(15)
] + [
    {
        "accelerator": {"memory": "700Mi"}, "precision": "float32",
        "kvCache": {"ratio": 0.01}, "context": {"maxLength": 8192 - 100 * i},
    }
    for i in range(15)
]  # fmt: skip


def test_thirty_that_cannot_fit_are_refused_with_their_sums_and_no_pod(scene: Scene) -> None:
    names = [f"too-much-{i}" for i in range(len(IMPOSSIBLE))]
    scene.cluster.apply(*(manifest(scene.namespace, n, **s) for n, s in zip(names, IMPOSSIBLE, strict=True)))
    sums = {}
    for name in names:
        deployment = ModelDeployment(scene.cluster, scene.namespace, name)
        refused = deployment.wait("Accepted", "False", reason="DoesNotFit", seconds=SERVING)
        sums[name] = refused["message"]
        assert re.search(r"needs .* = .* of .*", refused["message"]), refused["message"]
        ready = deployment.wait("Ready", "False", seconds=SOON)
        assert ready["reason"] == "DoesNotFit"
        deployment.wait("Stalled", seconds=SOON)
    scene.result.note(sums=sums, words=sums[names[0]][:100])

    pods = scene.cluster.find("pods", scene.namespace, labelSelector=f"{COMPONENT}=server")
    assert not pods
    assert not scene.cluster.find("replicasets", scene.namespace, labelSelector=DEPLOYMENT)
    events = scene.cluster.find("events", scene.namespace, fieldSelector="involvedObject.kind=ModelDeployment")
    times: dict[str, int] = {}
    for event in events:
        name = event["involvedObject"]["name"]
        times[name] = times.get(name, 0) + event.get("count", 1)
    scene.result.note(events=sum(times.values()))
    assert max(times.values()) <= 4, "events on transitions only"
    created = scene.cluster.find("events", scene.namespace, fieldSelector="reason=Scheduled")
    assert len({e["involvedObject"]["name"] for e in created if "inspect" in e["involvedObject"]["name"]}) == 1


@pytest.mark.cluster_wide
def test_a_node_label_that_no_node_has_is_named(scene: Scene) -> None:
    deployment = scene.deploy(pod={"nodeSelector": {"example.com/zone": "nowhere"}})

    def named() -> bool:
        words = deployment.words()
        assert "example.com/zone=nowhere" in words, words
        return True

    eventually(named, SERVING, "the label is named")
    scene.result.note(words=deployment.status["message"][:120])


def test_a_source_that_is_not_there_says_so_and_heals(scene: Scene) -> None:
    deployment = scene.deploy(model={"source": "pvc://models/nothing.gguf"})
    missing = deployment.wait("SourceReady", "False", seconds=SERVING)
    eventually(lambda: "nothing.gguf" in deployment.words(), SERVING, "the missing file is named")
    assert not scene.cluster.find("replicasets", scene.namespace, labelSelector=DEPLOYMENT)
    scene.result.note(words=(deployment.condition("SourceReady") or missing)["message"][:120])
    scene.cluster.apply(manifest(scene.namespace, deployment.name, replicas=0))
    deployment.wait("SourceReady")


def test_a_source_outside_the_allowed_ones_is_refused(scene: Scene) -> None:
    deployment = scene.deploy(model={"source": "s3://bucket/model", "endpoint": "http://169.254.169.254"})
    refused = deployment.wait("Accepted", "False", seconds=SOON)
    scene.result.note(words=refused["message"][:120])
    assert "169.254.169.254" in refused["message"]
    assert not scene.cluster.find("pods", scene.namespace, labelSelector="plimsoll.dev/component=inspect")


def test_a_quota_on_limits_names_the_field_that_satisfies_it(scene: Scene) -> None:
    quota = {
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team", "namespace": scene.namespace},
        "spec": {"hard": {"limits.cpu": "4"}},
    }  # fmt: skip
    # A default below what our containers request would refuse every one of them.
    ranges = {
        "apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small", "namespace": scene.namespace},
        "spec": {"limits": [{"type": "Container", "default": {"cpu": "20m"}, "defaultRequest": {"cpu": "10m"}}]},
    }  # fmt: skip
    scene.cluster.apply(quota)
    deployment = scene.deploy()
    eventually(lambda: "spec.pod.limits.cpu" in deployment.words(), SERVING, "the field is named")
    scene.result.note(words=deployment.status["message"][:200])
    scene.cluster.apply(ranges)
    scene.deploy(pod={"limits": {"cpu": "1500m"}})
    deployment.wait("Ready", seconds=SERVING)
    assert deployment.status["ready"] == "1/1"
