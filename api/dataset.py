"""Addresses of texts to calibrate or to measure on, taken apart. Pure: nothing is looked up."""

import re
from dataclasses import dataclass
from typing import Literal

from plimsoll.api.errors import SpecError
from plimsoll.api.source import parse_source

_HUB = re.compile(
    r"datasets/(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[^/@\s]+))?(/(?P<path>[^@\s\x00]+?))?/?",
    re.ASCII,
)
_FIX = "Write self, a path, hf://datasets/ORG/NAME@REVISION, or hf://datasets/ORG/NAME@REVISION/CONFIG/SPLIT"


@dataclass(frozen=True)
class Dataset:
    """Where texts come from.

    Attributes:
        kind: `self` samples them from the model; `path` is a file or folder on this machine; `pvc` a folder or file of
            a claim, which the cluster mounts; `hf` a dataset of the Hugging Face hub.
        name: the repository or the claim; empty for the others.
        path: of a file or folder; for the hub a file, a folder, or a configuration and split.
        revision: of the hub: a branch, tag or commit, `main` where none is written.
    """

    kind: Literal["self", "path", "pvc", "hf"]
    name: str = ""
    path: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        if self.kind == "self":
            return "self"
        if self.kind == "path":
            return self.path
        if self.kind == "pvc":
            return f"pvc://{self.name}" + (f"/{self.path}" if self.path else "")
        revision = (self.revision or "main").replace("/", "%2F")
        return f"hf://datasets/{self.name}@{revision}" + (f"/{self.path}" if self.path else "")


def parse_dataset(text: str, field: str = "spec.calibration.dataset") -> Dataset:
    """Take an address apart: `self`, a path, `file://PATH`, `pvc://CLAIM/PATH`, `hf://datasets/ORG/NAME[@REVISION][/…]`.

    A slash inside a hub's revision is written %2F.

    Raises:
        SpecError: an address of another kind, or one that leaves the place it names; `field` is named.
    """
    if not text.strip() or "\x00" in text:
        raise SpecError("names no texts", field=field, value=text, fix=_FIX)
    if text == "self":
        return Dataset("self")
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Dataset("path", path=text)
    if scheme == "hf":
        return _hub(text, rest, field)
    if scheme not in ("file", "pvc"):
        raise SpecError("is a kind of address that no texts are read from", field=field, value=text, fix=_FIX)
    try:
        found = parse_source(text)
    except SpecError as error:
        raise SpecError(error.message, field=field, value=text, fix=error.fix) from None
    return Dataset("path" if scheme == "file" else "pvc", found.name, found.path)


def _hub(text: str, rest: str, field: str) -> Dataset:
    match = _HUB.fullmatch(rest)
    path = (match["path"] or "") if match else ""
    # The name goes into the hub's URL and the path into a folder of the cache: neither may lead elsewhere.
    if match is None or ".." in match["name"] or any(part in (".", "..", "") for part in path.split("/") if path):
        fix = "Write hf://datasets/ORG/NAME@REVISION" if rest.startswith("datasets/") else _FIX
        raise SpecError("is not the address of a dataset on the hub", field=field, value=text, fix=fix)
    revision = re.sub(r"%([0-9A-Fa-f]{2})", lambda found: chr(int(found[1], 16)), match["revision"] or "main")
    return Dataset("hf", match["name"], path, revision)
