"""The chart's operator for the whole cluster, with models that serve: its rights suffice, and it may go."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from e2e import volumes
from e2e.cluster import SERVING, SOON, Cluster, eventually
from e2e.deployments import CLAIM, MODEL_FILE
from e2e.jobs import QuantizationJob, job_manifest
from e2e.operators import ChartOperator
from e2e.scene import Scene
from e2e.test_groups import SMALL, TWO, leaders
from e2e.traffic import traffic

JOB = {
    "model": {"source": f"pvc://{CLAIM}/{MODEL_FILE}"}, "method": "rtn", "weights": {"groupSize": 64},
    "calibration": {"sequenceLength": 128}, "evaluation": {"samples": 2},
    "output": f"pvc://{CLAIM}/out", "pod": {"cpu": "50m"},
}  # fmt: skip


@pytest.fixture
def operator(
    cluster: Cluster, namespace: str, settings: dict[str, Any], operator_image: str
) -> Iterator[ChartOperator]:
    """Always the chart's, whatever the other scenarios run."""
    found = ChartOperator(cluster, namespace, settings, operator_image)
    found.start()
    yield found
    found.stop()


@pytest.mark.cluster_wide
def test_models_of_two_namespaces_outlive_the_charts_operator(
    bare: Scene, operator: ChartOperator, namespaces: Callable[[], str], model_file: Any, runtime_image: str
) -> None:
    scenes = [replace(bare, namespace=namespaces()) for _ in range(2)]
    for scene in scenes:
        volumes.claim(scene.cluster, scene.namespace, CLAIM)
        volumes.put(scene.cluster, scene.namespace, CLAIM, [(model_file, MODEL_FILE)], runtime_image, alone=True)
    # The second is a group of two pods: more kinds of objects, and the key that they share.
    deployments = [scenes[0].deploy(), scenes[1].deploy(**SMALL, parallelism=TWO, pod={"cpu": "50m"})]
    for deployment in deployments:
        deployment.ready()
        # Its status page was read, from a pod to a pod.
        eventually(lambda: deployment.status.get("observed"), SOON, f"{deployment.name} is observed")  # noqa: B023
    first, second = scenes[0].url(deployments[0]), scenes[1].url(deployments[1], selector=leaders(deployments[1]))

    job = QuantizationJob(bare.cluster, scenes[1].namespace, "rtn")
    bare.cluster.apply(job_manifest(job.namespace, job.name, JOB))
    eventually(lambda: job.status.get("progress"), SERVING, "the job's page is read")
    job.delete()

    log = operator.log()
    assert "forbidden" not in log.lower()
    assert not re.findall(r'.*"level": "(?:error|critical)".*', log)
    pods = [deployment.identities() for deployment in deployments]
    with traffic(first, "smollm2") as one, traffic(second, "smollm2") as other:
        operator.stop()
        for report in (one, other):
            report.mark("the chart is uninstalled")
            report.more(2)
    bare.result.note(traffic=one.figures(), other=other.figures(), words=other.words())
    assert pods == [deployment.identities() for deployment in deployments]
    one.assert_none_failed()
    other.assert_none_failed()
