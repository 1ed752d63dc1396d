"""From one file to a served 4-bit model, through an eviction; and a job that fails its gate while traffic runs."""

import time

import openai
import yaml

from e2e.cluster import SERVING, SOON, Object, eventually
from e2e.deployments import CLAIM, MODEL_FILE, ModelDeployment, merged
from e2e.jobs import QuantizationJob, job_manifest
from e2e.operators import ROOT
from e2e.scene import Scene
from e2e.traffic import traffic

EXAMPLE = ROOT / "examples" / "quantize-and-serve.yaml"
#: What two busy cores have time for; the example's own settings take minutes.
SMALL = {"calibration": {"samples": 4, "sequenceLength": 128}, "pod": {"cpu": "100m"}}
LIGHT = {"weights": {"clip": False, "compensate": False}}
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
    # A few short samples measure little: what is tried here is the way, and no model.
    limits = {"samples": 2, "maxPerplexityIncrease": "900%", "maxKLDivergence": 5}
    job["spec"] = merged(job["spec"], {**small, "evaluation": limits})
    deployment["spec"] = merged(deployment["spec"], {"pod": {"cpu": "50m"}, "context": {"maxLength": 1024}})
    return found


def ask(url: str, model: str) -> str:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=SERVING)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=24, temperature=0)  # type: ignore[arg-type]
    client.close()
    return str(answer.choices[0].message.content)


def test_from_a_checkpoint_through_an_eviction_and_a_gate_to_a_chat(scene: Scene) -> None:
    began, steps = time.monotonic(), {}

    def step(what: str) -> None:
        steps[what] = round(time.monotonic() - began, 1)
        print(f"{steps[what]:7.1f} s  {what}")
        scene.result.note(steps=steps)

    objects = example(scene.namespace)
    scene.cluster.apply(*objects.values())
    job = QuantizationJob(scene.cluster, scene.namespace, "smollm2-awq")
    deployment = ModelDeployment(scene.cluster, scene.namespace, "smollm2")
    eventually(lambda: job.status.get("startTime"), SOON, f"the Job is made; {job.words}")
    step("accepted, the Job is made")
    waits = deployment.wait("SourceReady", "False", reason="WaitingForQuantization")
    assert "smollm2-awq" in waits["message"]

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
    job.wait("Complete", QUANTIZED)
    step("complete")
    status = job.status
    batch = scene.cluster.get("jobs", scene.namespace, status["job"])
    assert batch is not None
    assert (batch["status"].get("failed", 0), batch["status"]["succeeded"]) == (0, 1), batch["status"]
    (pod,) = job.pods()
    logs = scene.cluster.kubectl("logs", pod["metadata"]["name"], "-n", scene.namespace)
    # It went on where the other was, and sampled nothing anew.
    assert f"layer {reached} of 30" in logs, logs
    assert "layer 1 of 30" not in logs, logs
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

    # A second job in the first one's place, which fails its gate while requests run.
    serving = deployment.identities()
    scene.cluster.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "texts", "namespace": scene.namespace},
         "data": {"ships.txt": TEXT}}
    )  # fmt: skip
    spec = {key: value for key, value in objects["QuantizationJob"]["spec"].items() if key != "weights"}
    spec |= {
        "method": "rtn", "weights": {"groupSize": 64}, "output": "pvc://smollm2/awq-2",
        "calibration": {"configMap": "texts", **SMALL["calibration"]},
        "evaluation": {"samples": 2, "maxKLDivergence": 0.00001},
    }  # fmt: skip
    with traffic(url, "smollm2", pause=1.0, tokens=16) as report:
        job.delete()
        eventually(lambda: scene.cluster.get("quantizationjobs", scene.namespace, job.name) is None, SOON, "it is gone")
        report.mark("the first job is deleted")
        deployment.wait("SourceReady", "True", reason="QuantizationJobGone")
        scene.cluster.apply(job_manifest(scene.namespace, job.name, spec))
        failed = job.wait("Failed", QUANTIZED)
        report.mark("the second job failed its gate")
        deployment.wait("SourceReady", "False", reason="QuantizationFailed")
        report.more(2)
    step("a second job failed its gate")
    scene.result.note(traffic=report.figures())
    assert failed["reason"] == "GateFailed", failed
    assert deployment.identities() == serving
    assert deployment.condition("Ready")["status"] == "True"  # type: ignore[index]
    assert "output" not in job.status
    report.assert_none_failed()

    job.delete()
    # Deleting a job leaves what lies on the claim.
    pod = deployment.pods()[0]["metadata"]["name"]
    left = scene.cluster.kubectl("exec", pod, "-n", scene.namespace, "--", "ls", "/models/awq-1", "/models/awq-2")
    assert left.count("plimsoll-manifest.json") == 2, left
    assert left.count("report.html") == 2, left
