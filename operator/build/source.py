"""How a pod comes by the files of a source, and under which name they are found in it."""

import posixpath
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from plimsoll.api.deployment import Model
from plimsoll.api.inspection import Inspection
from plimsoll.checkpoint.sources import HubSource, parse_hub
from plimsoll.operator import names
from plimsoll.operator.build.common import Object

#: Where an image keeps its checkpoint if the source names no path.
IMAGE_FOLDER = "models"


@dataclass(frozen=True)
class Place:
    """A source, taken apart."""

    scheme: str
    holder: str
    """The claim, the image with its digest, the bucket or the repository."""
    path: str
    """Inside of it, without slashes at the ends."""

    @property
    def fetched(self) -> bool:
        """A container of ours downloads it; else the kubelet brings it."""
        return self.scheme in ("hf", "s3")


def place(source: str) -> Place:
    """Takes apart an address that admission has let through."""
    scheme, _, rest = source.partition("://")
    if scheme == "oci":
        image, at, tail = rest.partition("@")
        digest, _, path = tail.partition("/")
        return Place(scheme, image + at + digest, path.strip("/"))
    if scheme == "hf":
        return Place(scheme, rest, "")
    holder, _, path = rest.partition("/")
    return Place(scheme, holder, path.strip("/"))


def source_key(namespace: str, model: Model) -> str:
    """What is inspected once: the same address, asked in the same way, from the same namespace's volumes and secrets."""
    asked = {"source": model.source, "endpoint": model.endpoint, "credentialsSecret": model.credentials_secret}
    return names.digest({"namespace": namespace, **{k: v for k, v in asked.items() if v is not None}}, 16)


def resolved(model: Model, inspection: Inspection) -> str:
    """The source as inspected: a hub's branch may move between two pods of one revision."""
    if not model.source.startswith("hf://"):
        return model.source
    asked = parse_hub(model.source)
    return str(HubSource(asked.repo, quote(inspection.revision, safe=""), asked.file))


def cache_folder(model: Model, inspection: Inspection) -> str:
    """Of one revision inside a cache claim: another one goes beside it while pods still serve this one."""
    asked = {"source": resolved(model, inspection), "endpoint": model.endpoint, "digest": inspection.digest}
    return names.digest({k: v for k, v in asked.items() if v is not None}, 16)


def file_uri(root: str, *inside: str) -> str:
    return "file://" + quote(posixpath.join(root, *(part for part in inside if part)))


def credentials(model: Model) -> list[Object]:
    """Environment of a container that fetches: values stay in the Secret, where only the kubelet reads them."""
    found: list[Object] = []
    scheme = place(model.source).scheme
    if model.endpoint:
        found.append({"name": "HF_ENDPOINT" if scheme == "hf" else "AWS_ENDPOINT_URL", "value": model.endpoint})
    if not model.credentials_secret:
        return found
    keys = ("HF_TOKEN",) if scheme == "hf" else ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    for key in keys:
        wanted: dict[str, Any] = {"name": model.credentials_secret, "key": key, "optional": key == "AWS_SESSION_TOKEN"}
        found.append({"name": key, "valueFrom": {"secretKeyRef": wanted}})
    return found
