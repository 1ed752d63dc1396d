"""How a pod comes by the files of a source, and under which name they are found in it."""

import posixpath
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from plimsoll.api.checkpoint_source import CheckpointSource
from plimsoll.api.deployment import Model, ModelDeploymentSpec
from plimsoll.api.draft_model import DraftModel
from plimsoll.api.inspection import Inspection
from plimsoll.api.source import Source, parse_source
from plimsoll.operator import names
from plimsoll.operator.build.common import Object
from plimsoll.operator.shape import mapping
from plimsoll.operator.snapshot import Output

#: Where an image that is copied keeps its checkpoint, if the source names no path.
IMAGE_FOLDER = "models"


def fetched(source: Source) -> bool:
    """A container of ours downloads it; else the kubelet brings it."""
    return source.scheme in ("hf", "s3")


def image_reference(source: Source) -> str:
    """`NAME@DIGEST` of an `oci://` source."""
    return f"{source.name}@{source.revision}"


def source_key(namespace: str, model: CheckpointSource) -> str:
    """What is inspected once: one address, asked in one way, with the volumes and secrets of one namespace."""
    asked = {
        "source": model.source, "endpoint": model.endpoint, "credentialsSecret": model.credentials_secret,
        "contentVersion": model.content_version,
    }  # fmt: skip
    return names.digest({"namespace": namespace, **{k: v for k, v in asked.items() if v is not None}}, 16)


def draft_source(model: Model, draft: DraftModel) -> Model:
    """Where a draft is, as a model of its own. What opens the model opens a draft whose address begins alike."""
    if model.source.partition("://")[0] != draft.source.partition("://")[0]:
        return Model(source=draft.source)
    opened = {"credentials_secret": model.credentials_secret, "endpoint": model.endpoint}
    return Model(source=draft.source).model_copy(update={**opened, "cache_claim": model.cache_claim})


def of_draft(spec: ModelDeploymentSpec) -> ModelDeploymentSpec:
    """`spec` with its draft in the model's place: what reads a model's source reads a draft's."""
    assert spec.serving.draft is not None
    return spec.model_copy(update={"model": draft_source(spec.model, spec.serving.draft)})


def draft_key(namespace: str, spec: Mapping[str, Any]) -> str | None:
    """The `source_key` of the draft that a spec names; None where it names none, or is refused anyway."""
    draft = mapping(spec.get("serving")).get("draft")
    if draft is None:
        return None
    try:
        model = Model.model_validate(spec.get("model") or {})
        return source_key(namespace, draft_source(model, DraftModel.model_validate(draft)))
    except ValueError:
        return None


def output_key(namespace: str, output: Output) -> str:
    """The same of what a quantization job wrote: another digest at the same place is another source."""
    return names.digest({"namespace": namespace, "source": output.uri, "digest": output.digest}, 16)


def resolved(model: CheckpointSource, inspection: Inspection) -> str:
    """The source as inspected: a hub's branch may move between two pods of one revision."""
    found = parse_source(model.source)
    return str(replace(found, revision=inspection.revision)) if found.scheme == "hf" else model.source


def cache_folder(model: CheckpointSource, inspection: Inspection) -> str:
    """Of one revision inside a cache claim: another one goes beside it while pods still serve this one."""
    # Not the digest, which two fine-tunes of one shape may share.
    asked = {"source": resolved(model, inspection), "endpoint": model.endpoint, "revision": inspection.revision}
    return names.digest({k: v for k, v in asked.items() if v is not None}, 16)


def file_uri(root: str, *inside: str) -> str:
    """Of a file or folder in a pod."""
    return "file://" + quote(posixpath.join(root, *(part for part in inside if part)))


def mounted_uri(root: str, source: Source, inspection: Inspection) -> str:
    """Of the checkpoint where `root` shows the whole claim or image. A source may name the one file itself."""
    named = bool(source.path) and posixpath.basename(source.path) == inspection.path
    return file_uri(root, source.path, "" if named else inspection.path)


def downloaded_uri(folder: str, source: Source, inspection: Inspection) -> str:
    """Of the checkpoint in the folder that a hub's or bucket's files were fetched into."""
    file = posixpath.basename(source.path) if source.path.endswith(".gguf") else ""
    return file_uri(folder, inspection.path or file)


def credentials(model: CheckpointSource) -> list[Object]:
    """Environment of a container that fetches: values stay in the Secret, where only the kubelet reads them."""
    found: list[Object] = []
    scheme = parse_source(model.source).scheme
    if model.endpoint:
        found.append({"name": "HF_ENDPOINT" if scheme == "hf" else "AWS_ENDPOINT_URL", "value": model.endpoint})
    if not model.credentials_secret:
        return found
    keys = ("HF_TOKEN",) if scheme == "hf" else ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    for key in keys:
        wanted: dict[str, Any] = {"name": model.credentials_secret, "key": key, "optional": key == "AWS_SESSION_TOKEN"}
        found.append({"name": key, "valueFrom": {"secretKeyRef": wanted}})
    return found
