"""examples/hpa.yaml: the cluster's own HorizontalPodAutoscaler on `/scale`, by a metric that the test sets."""

from typing import Any

import pytest
import yaml

from e2e.cluster import SERVING, SOON, Object, eventually
from e2e.deployments import CLAIM, ModelDeployment, merged, settled
from e2e.metrics_api import metrics_api
from e2e.operators import ROOT
from e2e.scene import Scene
from e2e.traffic import traffic

EXAMPLE = ROOT / "examples" / "hpa.yaml"
#: Autoscalers look every fifteen seconds.
LOOKED = SOON
REQUEST = 50
"""Thousandths of a processor that a pod asks for; the example scales at 80 % of that."""


def example(namespace: str) -> dict[str, Object]:
    """By kind; no more than two small replicas, and none that is kept for ten minutes."""
    found = {one["kind"]: one for one in yaml.safe_load_all(EXAMPLE.read_text())}
    for one in found.values():
        one["metadata"]["namespace"] = namespace
    small = {"accelerator": {"memory": "1Gi"}, "context": {"maxLength": 1024}, "pod": {"cpu": f"{REQUEST}m"}}
    deployment, scaler = found["ModelDeployment"], found["HorizontalPodAutoscaler"]
    assert deployment["spec"]["model"]["source"].startswith(f"pvc://{CLAIM}/")
    deployment["spec"] = merged(deployment["spec"], small)
    at_once = {"maxReplicas": 2, "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}}
    scaler["spec"] = merged(scaler["spec"], at_once)
    return found


@pytest.mark.long
@pytest.mark.alone
def test_an_autoscaler_takes_it_from_one_to_two_and_back_under_traffic(scene: Scene, runtime_image: str) -> None:
    objects = example(scene.namespace)
    path = f"/apis/autoscaling/v2/namespaces/{scene.namespace}/horizontalpodautoscalers/smollm2"

    def seen(**wanted: Any) -> bool:
        status = scene.cluster.api("GET", path).get("status", {})
        assert {key: status.get(key) for key in wanted} == wanted, status
        return True

    with metrics_api(scene.cluster, scene.namespace, runtime_image) as metrics:
        metrics.uses(REQUEST * 8 // 10)
        scene.cluster.apply(*objects.values())
        deployment = ModelDeployment(scene.cluster, scene.namespace, "smollm2")
        deployment.ready()
        url = scene.url(deployment)
        with traffic(url, "smollm2") as report:
            metrics.uses(2 * REQUEST)
            at = report.mark("its pods use twice what they asked for")
            eventually(lambda: deployment.get()["spec"]["replicas"] == 2, LOOKED, "the autoscaler asks for two")
            asked_up = report.mark("two are asked for") - at
            settled(deployment, 2, SERVING)
            report.mark("two serve")
            # As `kubectl apply` of the same file again, which leaves `replicas` out.
            scene.cluster.apply(objects["ModelDeployment"])
            eventually(lambda: seen(currentReplicas=2, desiredReplicas=2), LOOKED, "it counts two")
            report.more(2)
            assert deployment.get()["spec"]["replicas"] == 2
            assert len(deployment.ready_pods()) == 2

            metrics.uses(REQUEST // 5)
            at = report.mark("its pods use a fifth")
            eventually(lambda: deployment.get()["spec"]["replicas"] == 1, LOOKED, "the autoscaler asks for one")
            asked_down = report.mark("one is asked for") - at
            settled(deployment, 1, SERVING)
            report.mark("one serves")
            eventually(lambda: seen(currentReplicas=1, desiredReplicas=1), LOOKED, "it counts one")
            report.more(1)
        asked = metrics.asked()
    scene.result.note(
        traffic=report.figures(), words=f"asked for two after {asked_up:.0f} s, for one after {asked_down:.0f} s"
    )
    live = deployment.get()
    # Autoscalers sort what they select by.
    assert {tuple(sorted(one.split(","))) for one in asked} == {tuple(sorted(live["status"]["selector"].split(",")))}
    owners = [
        m["manager"] for m in live["metadata"]["managedFields"] if "f:replicas" in m["fieldsV1"].get("f:spec", {})
    ]
    assert owners == ["kube-controller-manager"]
    report.assert_none_failed()
