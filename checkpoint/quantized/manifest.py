"""`plimsoll-manifest.json`: what a quantization wrote, from what, by which recipe, and whether it may be served.

It is written last: a folder with a manifest is a whole one. Its digest covers every file beside it, so that two
outputs are the same where their digests are.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from plimsoll.api.config_values import short
from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.complete import write_durably
from plimsoll.checkpoint.json_file import read_object

MANIFEST_NAME = "plimsoll-manifest.json"
VERSION = 1
Gate = Literal["passed", "failed", "none"]
_MAKE_AGAIN = "Make the checkpoint again, or copy it again"


def _plain(name: str) -> str:
    # `..` or `/` would read files that are none of the checkpoint's.
    if name != Path(name).name or "\0" in name or name in ("", ".."):
        raise ValueError("must be a plain name")
    return name


@dataclass(frozen=True)
class ManifestFile:
    """One file beside the manifest: a plain name, its bytes, and the SHA-256 of its contents in hex."""

    name: Annotated[str, AfterValidator(_plain)]
    bytes: Annotated[int, Field(strict=True)]
    sha256: str


def _by_name(files: tuple[ManifestFile, ...]) -> tuple[ManifestFile, ...]:
    return tuple(sorted(files, key=lambda file: file.name))


@dataclass(frozen=True)
class Manifest:
    """What the file says. Keys in JSON are camelCase."""

    files: Annotated[tuple[ManifestFile, ...], AfterValidator(_by_name)]
    """Sorted by name."""
    gate: Gate
    """`none`: nothing was measured against a limit."""
    gate_message: Annotated[str | None, Field(alias="gateMessage")] = None
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


_READER = TypeAdapter(Manifest)


def hash_file(path: Path) -> ManifestFile:
    """Raises OSError where `path` cannot be read."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return ManifestFile(path.name, file.tell(), digest)


def hash_files(folder: Path, names: Iterable[str]) -> tuple[ManifestFile, ...]:
    """Sorted by name. Raises OSError."""
    return tuple(hash_file(folder / name) for name in sorted(names))


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Atomically: the file is there as a whole or not at all. Raises OSError."""
    value = {"version": VERSION, "digest": manifest.digest, **_READER.dump_python(manifest, by_alias=True)}
    write_durably(folder / MANIFEST_NAME, value, indent=2, ensure_ascii=False, allow_nan=False)
    return folder / MANIFEST_NAME


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
    try:
        manifest = _READER.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"][:1]))
        raise CheckpointError(
            f"is not what `plimsoll quantize` writes: {first['msg'].lower()}", field=f"{path}: {field}",
            value=short(first["input"]), fix=_MAKE_AGAIN,
        ) from None  # fmt: skip
    if value.get("digest") != manifest.digest:
        raise CheckpointError(
            f"its files make {manifest.digest}", field=f"{path}: digest", value=value.get("digest"), fix=_MAKE_AGAIN
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
                value="no such file" if found is None else found, fix=_MAKE_AGAIN,
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
            fix="Quantize it by another method or in smaller groups, or allow a larger loss and quantize it again",
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
            raise CheckpointError(f"cannot be read: {error.strerror}", field=str(path), fix=_MAKE_AGAIN) from None
        if found != file:
            raise CheckpointError(
                f"is not the file that was written: {file.bytes} bytes of sha256:{file.sha256}", field=str(path),
                value=f"{found.bytes} bytes of sha256:{found.sha256}", fix=_MAKE_AGAIN,
            )  # fmt: skip
    return manifest
