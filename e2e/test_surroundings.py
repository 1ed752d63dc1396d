"""What others do to our pods and files: injected containers, assigned users, a checkpoint that is replaced."""

import shutil
from collections.abc import Callable
from pathlib import Path

from e2e import volumes
from e2e.cluster import SOON, eventually
from e2e.deployments import CLAIM, MODEL_FILE, ModelDeployment
from e2e.injecting import ASSIGNED, SIDECAR, injecting
from e2e.jobs import QuantizationJob, job_manifest
from e2e.scene import Scene

#: As little work as a job can be.
SMALL = {
    "model": {"source": f"pvc://{CLAIM}/{MODEL_FILE}"}, "output": f"pvc://{CLAIM}/small",
    "method": "rtn", "evaluation": {"samples": 1}, "weights": {"groupSize": 64}, "pod": {"cpu": "100m"},
    "calibration": {"configMap": "texts", "sequenceLength": 128},
}  # fmt: skip
TEXT = " ".join(f"Ship number {number} is loaded up to her line and never past it." for number in range(400))


def test_a_container_that_never_ends_and_a_user_that_the_cluster_assigns(
    scene: Scene, runtime_image: str, tmp_path: Path
) -> None:
    with injecting(scene.cluster, scene.namespace, runtime_image, tmp_path):
        meta = {"name": "texts", "namespace": scene.namespace}
        scene.cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"a.txt": TEXT}})
        scene.cluster.apply(job_manifest(scene.namespace, "small", SMALL))
        deployment = scene.deploy(pod={"securityContext": {"assignedByCluster": True}})
        deployment.ready()
        [pod] = deployment.pods()
        assert [one["name"] for one in pod["spec"]["containers"]] == [SIDECAR, "server"]
        assert pod["spec"]["securityContext"]["runAsUser"] == ASSIGNED
        where = ("exec", "-n", scene.namespace, pod["metadata"]["name"], "-c", "server", "--")
        assert scene.cluster.kubectl(*where, "id", "-u").strip() == str(ASSIGNED)
        job = QuantizationJob(scene.cluster, scene.namespace, "small")
        job.wait("Complete")
        assert all(SIDECAR in [c["name"] for c in one["spec"]["containers"]] for one in job.pods())
        scene.result.note(job=job.status.get("seconds"))


def test_a_checkpoint_that_was_replaced_serves_only_when_that_is_wished(
    scene: Scene,
    serving: Callable[..., tuple[ModelDeployment, str]],
    model_file: Path,
    runtime_image: str,
    tmp_path: Path,
) -> None:
    deployment, _ = serving()
    first, revision = deployment.identities(), deployment.status["revision"]
    other = tmp_path / MODEL_FILE
    shutil.copyfile(model_file, other)
    with other.open("r+b") as file:
        file.seek(-4096, 2)
        file.write(bytes(4096))
    volumes.put(scene.cluster, scene.namespace, CLAIM, [(other, MODEL_FILE)], runtime_image)

    scene.cluster.kubectl("scale", f"mdep/{deployment.name}", "-n", scene.namespace, "--replicas=2")
    said = deployment.wait("Ready", "False", reason="SourceChanged")["message"]
    scene.result.note(words=said[:200])
    assert MODEL_FILE in said, said
    assert "spec.model.contentVersion" in said, said
    # The old pod serves on, the new one never did.
    assert first < deployment.identities()
    assert deployment.routable() == 1
    deployment.patch(model={"contentVersion": "2"})
    deployment.ready()
    eventually(lambda: not first & deployment.identities(), SOON, "the old pods are gone")
    assert deployment.status["revision"] != revision
    assert deployment.status["ready"] == "2/2"
