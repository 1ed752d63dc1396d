"""The batch/v1 Job that runs `plimsoll quantize`: retries that resume, nothing that it need not reach."""

import posixpath
from collections.abc import Mapping
from typing import Any

from plimsoll.api.dataset import parse_dataset
from plimsoll.api.inspection import Inspection
from plimsoll.api.job_budget import JobNeeds
from plimsoll.api.quantization_job import Calibration, Evaluation, QuantizationJobSpec
from plimsoll.api.source import parse_source
from plimsoll.operator import names
from plimsoll.operator.build.common import Object, container_security, metadata, plain, quantity
from plimsoll.operator.build.placing import Placing, node_affinity, with_affinity
from plimsoll.operator.build.pod import environment, inspected_contents, models_of, placement, scratch
from plimsoll.operator.build.revision import processors
from plimsoll.operator.build.source import credentials
from plimsoll.operator.build.surroundings import (
    authority_mounts,
    authority_volumes,
    limited,
    network_environment,
    user_name,
)
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import Deployment

CONTAINER = "quantize"
OUTPUT, TEXTS = "/output", "/texts"
#: What the pod gets beside the line: files that are read stay mapped, and the process breathes.
BESIDE_BYTES = 256 << 20
#: Ends that no repetition changes: an error that says what to do (1), and a gate that failed (3).
FINAL_EXIT_CODES = (1, 3)
#: The exit status after SIGTERM: finished work is kept.
STOPPED_EXIT_CODE = 143


def job_name(deployment: Deployment) -> str:
    """One for each QuantizationJob object and spec: a Job's template cannot be changed."""
    return f"{deployment.name}-{names.digest({'uid': deployment.uid, 'spec': dict(deployment.spec)}, 6)}"


def job(
    deployment: Deployment, spec: QuantizationJobSpec, inspection: Inspection, needs: JobNeeds, settings: Settings,
    *, image_volumes: bool, placing: Placing | None = None,
) -> Object:  # fmt: skip
    """Evictions and deleted pods cost nothing of `backoffLimit`; `FINAL_EXIT_CODES` end it at once.

    `placing`: which nodes' devices hold the searches of a job on GPUs.
    """
    volumes = _Volumes()
    models = models_of(spec, inspection, settings, image_volumes)
    volumes.take(models.volume, models.mount_path)
    container_env = inspected_contents(spec, inspection)
    args = ["quantize", models.uri, *_arguments(deployment, spec, needs, volumes)]
    labels = {**plain(spec.pod.labels), **names.job_labels(deployment.name)}
    body: Object = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 30,
        "containers": [_container(deployment, spec, needs, settings, args, volumes.mounts, container_env)],
        "volumes": [*volumes.found(), scratch(), *authority_volumes(spec)],
        **placement(spec, settings, models.pull_secret),
    }
    if models.init:
        body["initContainers"] = models.init
    if placing is not None:
        body["affinity"] = with_affinity(body.get("affinity") or {}, node_affinity(placing))
    annotations = {"kubectl.kubernetes.io/default-container": CONTAINER, **plain(spec.pod.annotations)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(deployment, job_name(deployment)),
        "spec": {
            "completions": 1,
            "parallelism": 1,
            "backoffLimit": spec.backoff_limit,
            "ttlSecondsAfterFinished": spec.ttl_seconds_after_finished,
            # The next pod starts once the last one is gone for good: two would write to one place.
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": _rules()},
            "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": body},
        },
    }


def _rules() -> list[Object]:
    """In this order: an evicted pod that ends with an error on its way out was evicted."""

    def ended(action: str, *codes: int) -> Object:
        return {"action": action, "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": list(codes)}}

    evicted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return [evicted, ended("FailJob", *FINAL_EXIT_CODES), ended("Ignore", STOPPED_EXIT_CODE)]


def _container(
    deployment: Deployment, spec: QuantizationJobSpec, needs: JobNeeds, settings: Settings,
    args: list[str], mounts: list[Object], beside: list[Object],
) -> Object:  # fmt: skip
    both = {"memory": quantity(memory_line(spec, needs) + BESIDE_BYTES)}
    image = settings.runtime_image
    if spec.on_gpus:
        both[spec.accelerator.resource] = str(spec.parallelism.workers)
        image = settings.cuda_runtime_image or image
    limits: Object = {} if spec.pod.cpu is None else {"cpu": str(spec.pod.cpu)}
    env = [*environment(), *user_name(spec), {"name": "PLIMSOLL_TERMINATION_LOG", "value": "/dev/termination-log"}]
    if _reads_hub(spec):
        env += [{"name": "PLIMSOLL_FORBID_LOCAL", "value": "1"}, *credentials(spec.model), *network_environment(spec)]
        mounts = [*mounts, *authority_mounts(spec)]
    else:
        env.append({"name": "HF_HUB_OFFLINE", "value": "1"})
    env += beside
    return {
        "name": CONTAINER,
        "image": spec.pod.image or image,
        "imagePullPolicy": spec.pod.image_pull_policy,
        "args": args,
        "env": env,
        "ports": [{"name": "status", "containerPort": names.STATUS_PORT, "protocol": "TCP"}],
        "resources": limited(
            {"requests": {"cpu": str(processors(deployment.spec) or 1), **both}, "limits": limits | both}, spec
        ),
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [*mounts, {"name": "tmp", "mountPath": "/tmp"}],
    }


def memory_line(spec: QuantizationJobSpec, needs: JobNeeds) -> int:
    """Bytes of host memory that the job keeps below."""
    return spec.line or needs.memory


def _reads_hub(spec: QuantizationJobSpec) -> bool:
    texts = (spec.calibration.dataset, spec.evaluation.dataset)
    return any(parse_dataset(text).kind == "hf" for text in texts if text)


def _arguments(
    deployment: Deployment, spec: QuantizationJobSpec, needs: JobNeeds, volumes: "_Volumes"
) -> list[str]:  # fmt: skip
    output = parse_source(spec.output)
    volumes.claim(output.name, OUTPUT, write=True)
    found = [
        "--work-dir", posixpath.join(OUTPUT, output.path), "--method", spec.method, "--w-bits", str(spec.bits),
        "--format", spec.written_format, "--memory", str(memory_line(spec, needs)), "--seed", str(spec.seed),
        "--status-port", str(names.STATUS_PORT),
    ]  # fmt: skip
    if spec.on_gpus:
        found += ["--device", "cuda"]
        if spec.accelerator.memory is not None:
            found += ["--device-memory", str(spec.accelerator.memory)]
    if spec.on_gpus or spec.parallelism.workers > 1:
        found += ["--workers", str(spec.parallelism.workers)]
    if spec.group_size:
        found += ["--w-group-size", str(spec.group_size)]
    if spec.calibration.samples is not None:
        found += ["--calib-samples", str(spec.calibration.samples)]
    if spec.calibration.sequence_length is not None:
        found += ["--calib-seqlen", str(spec.calibration.sequence_length)]
    switches = {
        "search-scale": spec.weights.search_scale, "clip": spec.weights.clip, "compensate": spec.weights.compensate,
    }  # fmt: skip
    found += [f"--no-{name}" for name, wanted in switches.items() if wanted is False]
    if spec.calibration.batch_size is not None:
        found += ["--batch-size", str(spec.calibration.batch_size)]
    found += ["--calib-dataset", _texts(spec.calibration, "calibration", volumes) or "self"]
    evaluation = spec.evaluation
    found += ["--eval-samples", str(evaluation.samples)]
    held_out = _texts(evaluation, "evaluation", volumes)
    if held_out:
        found += ["--eval-dataset", held_out]
    if evaluation.max_perplexity_increase is not None:
        found += ["--max-perplexity-increase", str(deployment.spec["evaluation"]["maxPerplexityIncrease"])]
    if evaluation.max_kl_divergence is not None:
        found += ["--max-kl-divergence", f"{evaluation.max_kl_divergence:g}"]
    return found


def _texts(asked: Calibration | Evaluation, name: str, volumes: "_Volumes") -> str | None:
    """The argument of the command: a path where texts are mounted, else an address."""
    folder = f"{TEXTS}/{name}"
    if asked.config_map:
        volumes.config_map(asked.config_map, name, folder)
        return folder
    if asked.dataset is None:
        return None
    dataset = parse_dataset(asked.dataset)
    if dataset.kind != "pvc":
        return str(dataset)
    volumes.claim(dataset.name, folder)
    return posixpath.join(folder, dataset.path) if dataset.path else folder


class _Volumes:
    """One volume a claim, however often it is mounted: kubelets stumble over two of one claim in a pod."""

    def __init__(self) -> None:
        self.mounts: list[Object] = []
        self._volumes: dict[str, Object] = {}
        self._claims: dict[str, str] = {}
        self._written: set[str] = set()

    def take(self, volume: Mapping[str, Any], path: str) -> None:
        """Mount the checkpoint's volume. Only the container that fetches may write to it."""
        claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
        if claim:
            self._claims[claim] = volume["name"]
            if not volume["persistentVolumeClaim"].get("readOnly"):
                self._written.add(claim)
        self._volumes[volume["name"]] = dict(volume)
        self.mounts.append({"name": volume["name"], "mountPath": path, "readOnly": True})

    def claim(self, claim: str, path: str, write: bool = False) -> None:
        name = self._claims.setdefault(claim, path.rpartition("/")[2])
        self._volumes.setdefault(name, {"name": name})
        if write:
            self._written.add(claim)
        self.mounts.append({"name": name, "mountPath": path, **({} if write else {"readOnly": True})})

    def config_map(self, config_map: str, name: str, path: str) -> None:
        self._volumes[name] = {"name": name, "configMap": {"name": config_map, "defaultMode": 0o444}}
        self.mounts.append({"name": name, "mountPath": path, "readOnly": True})

    def found(self) -> list[Object]:
        for claim, name in self._claims.items():
            kept = {"claimName": claim, **({} if claim in self._written else {"readOnly": True})}
            self._volumes[name] = {"name": name, "persistentVolumeClaim": kept}
        return list(self._volumes.values())
