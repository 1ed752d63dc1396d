"""What of a manifest one machine cannot do (`plimsoll up`): some is refused, the rest changes nothing."""

from pydantic import BaseModel

from plimsoll.api.deployment import ModelDeployment, ModelDeploymentSpec
from plimsoll.api.errors import SpecError
from plimsoll.api.quantization_job import QuantizationJobSpec
from plimsoll.api.source import parse_source

#: Where fields are that say how a cluster runs pods, and what of these one machine obeys all the same.
_OF_PODS = ("model", "parallelism", "rollout", "pod")
_OBEYED = (
    "model.source", "model.servedName", "parallelism.tensor", "parallelism.nodes", "rollout.drainTimeout", "pod.cpu",
)  # fmt: skip


def refuse_on_one_machine(spec: ModelDeploymentSpec) -> None:
    """Raises SpecError for what cannot be left undone: a checkpoint that is not here, and keys that are not here."""
    if spec.model.quantization_job is not None:
        raise SpecError(
            "is not in this file", field="spec.model.quantizationJob", value=spec.model.quantization_job,
            fix="Put the QuantizationJob before it, with output: file://FOLDER; or write spec.model.source: file://FOLDER",
        )  # fmt: skip
    _refuse_source(spec.model.source)
    if spec.serving.draft is not None:
        _refuse_source(spec.serving.draft.source, "spec.serving.draft.source")
    if spec.serving.api_keys_secret is not None:
        raise SpecError(
            "is a Secret of a cluster, and without it everybody who reaches the port might ask",
            field="spec.serving.apiKeysSecret", value=spec.serving.api_keys_secret,
            fix="Write spec.serving.apiKeysFile in its place",
        )  # fmt: skip


def on_one_machine(deployment: ModelDeployment) -> ModelDeployment:
    """The same with all ranks on one node: `parallelism.nodes` is a number of a cluster's pods."""
    parallelism = deployment.spec.parallelism.model_copy(update={"nodes": 1})
    spec = deployment.spec.model_copy(update={"parallelism": parallelism})
    return deployment.model_copy(update={"spec": spec})


def refuse_job_on_one_machine(spec: QuantizationJobSpec) -> None:
    """Raises SpecError for what a job reads or writes elsewhere than on this machine or on the hub."""
    _refuse_source(spec.model.source)
    if not spec.output.startswith("file://"):
        raise SpecError("is a claim of a cluster", field="spec.output", value=spec.output, fix="Write file://FOLDER")
    for name, asked in (("calibration", spec.calibration), ("evaluation", spec.evaluation)):
        if asked.config_map is not None or (asked.dataset or "").startswith("pvc://"):
            field = f"spec.{name}.{'configMap' if asked.config_map else 'dataset'}"
            raise SpecError(
                "is read in a cluster alone", field=field, value=asked.config_map or asked.dataset,
                fix=f"Write spec.{name}.dataset: file://PATH",
            )  # fmt: skip


def _refuse_source(source: str, field: str = "spec.model.source") -> None:
    scheme = parse_source(source).scheme
    if scheme not in ("file", "hf"):
        fix = {
            "s3": "Fetch it with `plimsoll fetch SOURCE --into FOLDER`, and write file://FOLDER",
            "pvc": "Write file://PATH to a copy on this machine",
            "oci": "Copy the files out of the image, and write file://PATH",
        }[scheme]
        raise SpecError("is opened in a cluster alone", field=field, value=source, fix=fix)


def of_a_cluster(spec: ModelDeploymentSpec) -> list[str]:
    """Fields that are set and that only a cluster obeys, as `replicas` and `pod.nodeSelector`."""
    found = [] if spec.replicas == 1 else ["replicas"]
    for name in _OF_PODS:
        part: BaseModel = getattr(spec, name)
        for field, info in type(part).model_fields.items():
            path = f"{name}.{info.alias}"
            unset = info.is_required() or getattr(part, field) == info.get_default(call_default_factory=True)
            if path not in _OBEYED and not unset:
                found.append(path)
    return found
