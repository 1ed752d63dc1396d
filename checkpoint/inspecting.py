"""From a source to what the budget needs of it, reading nothing but its configuration and its tensors' headers."""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from plimsoll.api.errors import CheckpointError, SpecError
from plimsoll.api.inspection import Inspection
from plimsoll.api.source import parse_source
from plimsoll.checkpoint.checkpoint import Checkpoint
from plimsoll.checkpoint.contents import contents_of
from plimsoll.checkpoint.folder import FolderRemote
from plimsoll.checkpoint.headers import mirror
from plimsoll.checkpoint.open import open_checkpoint
from plimsoll.checkpoint.remote import Remote, RemoteFile
from plimsoll.checkpoint.sources import HubSource, resolve


def addressed(source: str) -> str:
    """A plain path as the address it is short for."""
    return source if "://" in source else f"file://{source}"


def open_remote(source: str) -> Remote:
    """What `file://` (or a plain path), `hf://` or `s3://` names, resolved and listed.

    Raises:
        SpecError: an address of another kind; claims and images are mounted and then named by file://.
        CheckpointError: nothing there, no access, no connection.
    """
    found = parse_source(source := addressed(source))
    if found.scheme == "hf":
        from plimsoll.checkpoint.hub import HubRemote

        return HubRemote(HubSource(found.name, found.revision or "main", found.path or None))
    if found.scheme == "s3":
        from plimsoll.checkpoint.s3 import S3Remote

        return S3Remote(found)
    if found.scheme == "file":
        return FolderRemote(resolve(source))
    raise SpecError(
        "is mounted by the cluster and cannot be opened from here", field="spec.model.source", value=source,
        fix="Name the place it is mounted at: file:///source",
    )  # fmt: skip


def inspect_source(source: str) -> Inspection:
    """Raises SpecError and CheckpointError as `open_remote` and `open_checkpoint` do, naming files by their source."""
    return inspect_remote(open_remote(source))


def inspect_remote(remote: Remote) -> Inspection:
    """The facts of a source that is resolved already. Raises CheckpointError."""
    if isinstance(remote, FolderRemote):
        return _inspection(open_checkpoint(remote.place), remote)
    with tempfile.TemporaryDirectory(prefix="plimsoll-inspect-") as folder:
        try:
            return _inspection(open_checkpoint(mirror(remote, Path(folder))), remote)
        except CheckpointError as error:
            # The user does not know the copy of the headers: name the source instead.
            field = (error.field or remote.label).replace(folder, remote.label)
            error.field = field if remote.label in field else f"{remote.label}: {field}"
            raise


def _inspection(checkpoint: Checkpoint, remote: Remote) -> Inspection:
    digest = digest_of(checkpoint, remote.files)
    contents = contents_of(remote.place) if isinstance(remote, FolderRemote) else ""
    return Inspection(digest, remote.revision or digest, remote.bytes, remote.path, checkpoint.facts, contents)


def digest_of(checkpoint: Checkpoint, files: Sequence[RemoteFile]) -> str:
    """`sha256:…` of the configuration and headers, and of the names and sizes of all files that serving needs.

    The same wherever the files lie. It is not a checksum of weights: two fine-tunes of one shape may share it.
    """
    names = sorted((Path(file.name).name, file.size) for file in files)
    text = json.dumps([checkpoint.digest(), names], separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
