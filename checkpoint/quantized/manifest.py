"""`plimsoll-manifest.json`: what a quantization wrote, from what, by which recipe, and whether it may be served.

It is written last: a folder with a manifest is a whole one. Its digest covers every file beside it, so that two
outputs are the same where their digests are.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.json_file import read_object

MANIFEST_NAME = "plimsoll-manifest.json"
VERSION = 1
Gate = Literal["passed", "failed", "none"]
_CHUNK = 1 << 20
_MADE_ANEW = "Make the checkpoint anew, or copy it again"


@dataclass(frozen=True)
class ManifestFile:
    """One file beside the manifest: a plain name, its bytes, and the SHA-256 of its contents in hex."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What the file says."""

    files: tuple[ManifestFile, ...]
    """Sorted by name."""
    gate: Gate
    """`none`: nothing was measured against a limit."""
    gate_message: str | None = None
    """Why the gate failed, with figures: "perplexity rose by 12.3 %, 2 % are allowed"."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    tokens: str | None = None
    """`sha256:…` of the calibration's token ids."""
    source: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """`sha256:…` over the sorted names and each one's SHA-256."""
        text = json.dumps([[file.name, file.sha256] for file in self.files], separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.bytes for file in self.files)


def hash_file(path: Path) -> ManifestFile:
    """Raises OSError where `path` cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        size = file.tell()
    return ManifestFile(path.name, size, digest.hexdigest())


def hash_files(folder: Path, names: Iterable[str]) -> tuple[ManifestFile, ...]:
    """Sorted by name. Raises OSError."""
    return tuple(hash_file(folder / name) for name in sorted(names))


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Atomically: the file is there as a whole or not at all. Raises OSError."""
    value = {
        "version": VERSION, "digest": manifest.digest,
        "files": [{"name": file.name, "bytes": file.bytes, "sha256": file.sha256} for file in manifest.files],
        "gate": manifest.gate, "gateMessage": manifest.gate_message, "recipe": dict(manifest.recipe),
        "tokens": manifest.tokens, "source": dict(manifest.source), "evaluation": dict(manifest.evaluation),
    }  # fmt: skip
    target = folder / MANIFEST_NAME
    scratch = folder / f".{MANIFEST_NAME}.partial"
    with open(scratch, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    scratch.rename(target)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return target


def read_manifest(folder: Path) -> Manifest | None:
    """None where there is none.

    Raises:
        CheckpointError: it is unreadable, or not what `write_manifest` writes.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return None
    value = read_object(path)
    if value.get("version") != VERSION:
        raise CheckpointError(
            f"only version {VERSION} is known", field=f"{path}: version", value=value.get("version"),
            fix="Serve it with the release that wrote it, or a later one",
        )  # fmt: skip
    if value.get("gate") not in get_args(Gate):
        raise CheckpointError(
            "must be passed, failed or none", field=f"{path}: gate", value=value.get("gate"), fix=_MADE_ANEW
        )
    manifest = Manifest(
        files=_files(value.get("files"), path),
        gate=cast(Gate, value["gate"]),
        gate_message=_text(value, "gateMessage", path),
        recipe=_object(value, "recipe", path),
        tokens=_text(value, "tokens", path),
        source=_object(value, "source", path),
        evaluation=_object(value, "evaluation", path),
    )
    if value.get("digest") != manifest.digest:
        raise CheckpointError(
            f"its files make {manifest.digest}", field=f"{path}: digest", value=value.get("digest"), fix=_MADE_ANEW
        )
    return manifest


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Raises CheckpointError where a file of weights has gone or is not as long as it was written."""
    for file in manifest.files:
        path = folder / file.name
        if not file.name.endswith(".safetensors"):
            continue
        found = path.stat().st_size if path.is_file() else None
        if found != file.bytes:
            raise CheckpointError(
                f"was written with {file.bytes} bytes", field=str(path),
                value="no such file" if found is None else found, fix=_MADE_ANEW,
            )  # fmt: skip


def failed_gate(folder: Path) -> str | None:
    """Why the quantization in `folder` was refused, with its figures; None where it was not, or is none."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.gate != "failed":
        return None
    return f"this quantized checkpoint failed its gate: {manifest.gate_message or 'it lost more than was allowed'}"


def refuse_failed_gate(folder: Path) -> None:
    """Raises CheckpointError, with the figures, for a folder whose quantization lost more than was allowed."""
    why = failed_gate(folder)
    if why is not None:
        raise CheckpointError(
            why,
            field=str(folder / MANIFEST_NAME),
            fix="Quantize it by another method or in smaller groups, or allow a larger loss and quantize it anew",
        )


def verify(folder: Path) -> Manifest:
    """The manifest of `folder`, once every file it names has been read and hashed.

    Raises:
        CheckpointError: there is no manifest, or a file is missing or is not what was written; it is named.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise CheckpointError(f"holds no {MANIFEST_NAME}", field=str(folder), fix="Only `plimsoll quantize` writes one")
    for file in manifest.files:
        path = folder / file.name
        try:
            found = hash_file(path)
        except OSError as error:
            raise CheckpointError(f"cannot be read: {error.strerror}", field=str(path), fix=_MADE_ANEW) from None
        if found != file:
            raise CheckpointError(
                f"is not the file that was written: {file.bytes} bytes of sha256:{file.sha256}", field=str(path),
                value=f"{found.bytes} bytes of sha256:{found.sha256}", fix=_MADE_ANEW,
            )  # fmt: skip
    return manifest


def _files(given: object, path: Path) -> tuple[ManifestFile, ...]:
    found = []
    for item in given if isinstance(given, list) else [None]:
        name, size, digest = (
            (item.get("name"), item.get("bytes"), item.get("sha256")) if isinstance(item, dict) else (None, None, None)
        )
        # A plain name: `..` or `/` would read files that are none of the checkpoint's.
        plain = isinstance(name, str) and name == Path(name).name and "\0" not in name and name not in ("", "..")
        if not plain or not isinstance(size, int) or not isinstance(digest, str):
            raise CheckpointError(
                "must list plain names with bytes and sha256", field=f"{path}: files", value=str(item)[:120],
                fix=_MADE_ANEW,
            )  # fmt: skip
        found.append(ManifestFile(cast(str, name), size, digest))
    return tuple(sorted(found, key=lambda file: file.name))


def _text(value: Mapping[str, Any], key: str, path: Path) -> str | None:
    text = value.get(key)
    if text is not None and not isinstance(text, str):
        raise CheckpointError("must be text", field=f"{path}: {key}", value=text, fix=_MADE_ANEW)
    return text


def _object(value: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    found = value.get(key)
    if found is not None and not isinstance(found, dict):
        raise CheckpointError("must be an object", field=f"{path}: {key}", value=found, fix=_MADE_ANEW)
    return found or {}
