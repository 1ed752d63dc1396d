"""What of a manifest one machine cannot do (`plimsoll up`): some is refused, the rest changes nothing."""

from pydantic import BaseModel

from plimsoll.api.deployment import ModelDeploymentSpec
from plimsoll.api.errors import SpecError
from plimsoll.api.source import parse_source

#: Where fields are that say how a cluster runs pods, and what of these one machine obeys all the same.
_OF_PODS = ("model", "rollout", "pod")
_OBEYED = ("model.source", "model.servedName", "rollout.drainTimeout", "pod.cpu")


def refuse_on_one_machine(spec: ModelDeploymentSpec) -> None:
    """Raises SpecError for what cannot be left undone: a checkpoint that is not here, and keys that are not here."""
    source = spec.model.source
    if spec.model.quantization_job is not None:
        raise SpecError(
            "is waited for in a cluster alone", field="spec.model.quantizationJob", value=spec.model.quantization_job,
            fix="Run `plimsoll quantize SOURCE --work-dir FOLDER`, and write spec.model.source: file://FOLDER",
        )  # fmt: skip
    scheme = parse_source(source).scheme
    if scheme not in ("file", "hf"):
        fix = {
            "s3": "Fetch it with `plimsoll fetch SOURCE --into FOLDER`, and write file://FOLDER",
            "pvc": "Write file://PATH to a copy on this machine",
            "oci": "Copy the files out of the image, and write file://PATH",
        }[scheme]
        raise SpecError("is opened in a cluster alone", field="spec.model.source", value=source, fix=fix)
    if spec.serving.api_keys_secret is not None:
        raise SpecError(
            "is a Secret of a cluster, and without it everybody who reaches the port might ask",
            field="spec.serving.apiKeysSecret", value=spec.serving.api_keys_secret,
            fix="Write spec.serving.apiKeysFile in its place",
        )  # fmt: skip


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
