"""From one file to a served 4-bit model, through an eviction; then, while traffic runs, a job that fails its gate and
one that passes, to whose output the deployment rolls.
"""

import re
import shlex
import time
from contextlib import nullcontext

import openai
import yaml

from e2e import volumes
from e2e.cluster import SERVING, SOON, Object, eventually
from e2e.deployments import CLAIM, MODEL_FILE, ModelDeployment, merged
from e2e.jobs import QuantizationJob, Watched, job_manifest
from e2e.operators import ROOT, LocalOperator
from e2e.scene import Scene
from e2e.traffic import traffic
from plimsoll.operator.build.pod import CHECKPOINT_DIGEST

EXAMPLE = ROOT / "examples" / "quantize-and-serve.yaml"
#: What two busy cores have time for; the example's own settings take minutes.
SMALL = {"calibration": {"samples": 4, "sequenceLength": 128}, "pod": {"cpu": "100m"}}
LIGHT = {"weights": {"clip": False, "compensate": False}}
#: A few short samples measure little: what is tried here is the way, and no model.
LIMITS = {"samples": 2, "maxPerplexityIncrease": "900%", "maxKLDivergence": 5}
#: Until a job of these settings is over, on a machine that has other things to do.
QUANTIZED = 600.0
TEXT = " ".join(f"Ship number {number} is loaded up to her line and never past it." for number in range(400))


def example(namespace: str) -> dict[str, Object]:
    """By kind, with the demo model's claim in the hub's place and no more work than there is time for."""
    found = {one["kind"]: one for one in yaml.safe_load_all(EXAMPLE.read_text())}
    for one in found.values():
        one["metadata"]["namespace"] = namespace
    job, deployment = found["QuantizationJob"], found["ModelDeployment"]
    small = {"model": {"source": f"pvc://{CLAIM}/{MODEL_FILE}"}, **SMALL, **LIGHT}
    job["spec"] = merged(job["spec"], {**small, "evaluation": LIMITS})
    deployment["spec"] = merged(deployment["spec"], {"pod": {"cpu": "50m"}, "context": {"maxLength": 1024}})
    return found


def ask(url: str, model: str) -> str:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=SERVING)
    messages = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=24, temperature=0)  # type: ignore[arg-type]
    client.close()
    return str(answer.choices[0].message.content)


def replace(scene: Scene, job: QuantizationJob, like: Object, output: str, evaluation: Object) -> None:
    """Another job of the same name, round to nearest: the old one is deleted first, what it wrote goes on serving."""
    job.delete()
    eventually(lambda: scene.cluster.get("quantizationjobs", scene.namespace, job.name) is None, SOON, "it is gone")
    ModelDeployment(scene.cluster, scene.namespace, "smollm2").wait("SourceReady", reason="QuantizationJobGone")
    spec = {key: value for key, value in like["spec"].items() if key != "weights"}
    spec |= {
        "method": "rtn", "weights": {"groupSize": 64}, "output": f"pvc://smollm2/{output}",
        "calibration": {"configMap": "texts", "sequenceLength": 128}, "evaluation": evaluation,
    }  # fmt: skip
    scene.cluster.apply(job_manifest(scene.namespace, job.name, spec))


def suspend(scene: Scene, job: QuantizationJob) -> None:
    """Suspends its Job, and resumes it by the command that the condition gives."""
    scene.cluster.patch("jobs", scene.namespace, job.status["job"], {"spec": {"suspend": True}})

    def suspended() -> Object:
        found = job.condition("Complete")
        assert found.get("reason") == "Suspended", job.words()
        return found

    message = eventually(suspended, SOON, "it says so")["message"]
    assert job.status["phase"] == "Pending"
    eventually(lambda: not job.pods(), SOON, "it has no pod")
    program, *command = shlex.split(message.partition("undo it by: ")[2])
    assert program == "kubectl", message
    scene.cluster.kubectl(*command)


def digests(deployment: ModelDeployment) -> list[str]:
    """What its pods, the ending ones too, are told to serve and nothing else; empty until all are ready."""
    pods = deployment.pods(ending=True)
    if len(pods) != len(deployment.ready_pods()):
        return []
    told = (e for pod in pods for e in pod["spec"]["containers"][0]["env"] if e["name"] == CHECKPOINT_DIGEST)
    return [one["value"] for one in told]


def test_from_a_checkpoint_through_an_eviction_and_a_gate_to_a_chat(scene: Scene, runtime_image: str) -> None:
    began, steps = time.monotonic(), {}

    def step(what: str) -> None:
        steps[what] = round(time.monotonic() - began, 1)
        print(f"{steps[what]:7.1f} s  {what}")
        scene.result.note(steps=steps)

    objects = example(scene.namespace)
    scene.cluster.apply(objects["PersistentVolumeClaim"])
    volumes.put(scene.cluster, scene.namespace, "smollm2", [], runtime_image, alone=True)
    scene.cluster.apply(*objects.values())
    job = QuantizationJob(scene.cluster, scene.namespace, "smollm2-awq")
    deployment = ModelDeployment(scene.cluster, scene.namespace, "smollm2")
    eventually(lambda: job.status.get("startTime"), SOON, f"the Job is made; {job.words}")
    step("accepted, the Job is made")
    waits = deployment.wait("SourceReady", "False", reason="WaitingForQuantization")
    assert "smollm2-awq" in waits["message"]

    progress = Watched(job)

    def layers(wanted: int) -> int:
        done = int(job.status.get("progress", {}).get("layer", 0))
        assert done >= wanted, job.words()
        return done

    reached = eventually(lambda: layers(3), QUANTIZED, "three layers are written", every=0.3)
    step(f"layer {reached} is written, its pod is evicted")
    evicted = job.evict()
    eventually(
        lambda: any(p["metadata"]["uid"] != evicted for p in job.pods()), SOON, "another pod takes its place", every=0.3
    )
    step("another pod goes on")
    reached = eventually(lambda: layers(reached + 3), QUANTIZED, "three more layers are written", every=0.3)
    suspend(scene, job)
    step(f"layer {reached} is written, its Job was suspended and resumed")
    job.wait("Complete", QUANTIZED)
    step("complete")
    scene.result.note(progress=progress.end())
    progress.check()
    status = job.status
    batch = scene.cluster.get("jobs", scene.namespace, status["job"])
    assert batch is not None
    assert (batch["status"].get("failed", 0), batch["status"]["succeeded"]) == (0, 1), batch["status"]
    (pod,) = job.pods()
    logs = scene.cluster.kubectl("logs", pod["metadata"]["name"], "-n", scene.namespace)
    # It went on where the one before it was, and sampled nothing anew.
    assert min(map(int, re.findall(r"layer (\d+) of 30", logs))) >= reached, logs
    assert "sampling" not in logs, logs
    scene.result.note(job={key: status.get(key) for key in ("evaluation", "output", "budget", "peakMemory", "seconds")})
    assert status["evaluation"]["after"]["klMean"] > 0, logs[-2000:]
    deployment.ready()
    step("ready")
    assert deployment.status["budget"]["precision"] == "w4a16"
    url = scene.url(deployment)
    eventually(lambda: deployment.routable() == 1, SOON, "its pod is behind the Service")
    answer = ask(url, "smollm2")
    assert "Paris" in answer
    step("answered")

    # Others in the first one's place while requests run: one that fails its gate, then one that passes.
    serving, first = deployment.identities(), status["output"]["digest"]
    scene.cluster.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "texts", "namespace": scene.namespace},
         "data": {"ships.txt": TEXT}}
    )  # fmt: skip
    with traffic(url, "smollm2", pause=1.0, tokens=16) as report:
        replace(scene, job, objects["QuantizationJob"], "awq-2", {"samples": 2, "maxKLDivergence": 0.00001})
        failed = job.wait("Failed", QUANTIZED)
        report.mark("the second job failed its gate")
        deployment.wait("SourceReady", "False", reason="QuantizationFailed")
        report.more(2)
        step("a second job failed its gate")
        assert failed["reason"] == "GateFailed", failed
        assert deployment.identities() == serving
        assert deployment.condition("Ready")["status"] == "True"  # type: ignore[index]
        assert "output" not in job.status

        replace(scene, job, objects["QuantizationJob"], "awq-3", LIMITS)
        eventually(lambda: layers(1), QUANTIZED, "a layer is written", every=0.3)
        # Its pod is gone before the operator looks again: what it said last counts.
        with scene.operator.frozen() if isinstance(scene.operator, LocalOperator) else nullcontext():
            job.end_without_pod(QUANTIZED)
        job.wait("Complete", QUANTIZED)
        report.mark("the third job is complete")
        step("a third job is complete")
        digest = job.status["output"]["digest"]
        assert digest != first
        eventually(lambda: digests(deployment) == [digest], SERVING, f"one pod, of {digest}")
        report.mark("its output serves alone")
        report.more(2)
    step("its output serves alone")
    scene.result.note(traffic=report.figures())
    assert deployment.identities() != serving
    assert deployment.wait("SourceReady")["reason"] != "QuantizationJobGone"
    assert deployment.status["source"]["uri"] == "pvc://smollm2/awq-3"
    report.assert_none_failed()

    job.delete()
    # Deleting a job leaves what lies on the claim.
    pod = deployment.pods()[0]["metadata"]["name"]
    folders = [f"/models/awq-{number}" for number in (1, 2, 3)]
    left = scene.cluster.kubectl("exec", pod, "-n", scene.namespace, "--", "ls", *folders)
    assert left.count("plimsoll-manifest.json") == 3, left
    assert left.count("report.html") == 3, left
