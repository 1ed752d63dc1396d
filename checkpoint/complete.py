"""What a folder of fetched files says of itself: which files are to be there, and that they all are."""

import errno
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from plimsoll.api.errors import CheckpointError, SpecError
from plimsoll.api.source import parse_source
from plimsoll.checkpoint.remote import Remote, RemoteFile

#: Where a folder keeps what is ours in it.
HIDDEN = ".plimsoll"
LAYOUT = 1


@dataclass(frozen=True)
class Complete:
    """The marker: written last, when every file is whole, checked and on the disk.

    Attributes:
        source: as it was asked for. `revision`, `digest`, `bytes` and `path` are those of an `Inspection`.
        files: name and size of each.
    """

    source: str
    revision: str
    digest: str
    bytes: int
    path: str
    files: Sequence[tuple[str, int]]

    def answers(self, source: str, revision: str | None) -> bool:
        """Whether it is what `source` (at `revision`, if given) names; a branch it was fetched from names it too."""
        if revision is not None and revision != self.revision:
            return False
        if source == self.source:
            return True
        try:
            mine, asked = parse_source(self.source), parse_source(source)
        except SpecError:
            return False
        same = (mine.scheme, mine.name, mine.path) == (asked.scheme, asked.name, asked.path)
        return same and (mine.scheme != "hf" or asked.revision == self.revision)


def marker_path(folder: Path) -> Path:
    """Path of the marker of a complete folder."""
    return folder / HIDDEN / "complete.json"


def read_marker(folder: Path) -> Complete | None:
    """The marker of a whole folder; None where there is none, or a file it names has gone or has another size."""
    found = _read(marker_path(folder))
    try:
        files = [(str(name), int(size)) for name, size in found["files"]]
        marker = Complete(
            found["source"], found["revision"], found["digest"], found["bytes"], found["path"], tuple(files)
        )
        if any((folder / name).stat().st_size != size for name, size in files):
            return None
    except (KeyError, TypeError, ValueError, OSError):
        return None
    return marker


def write_marker(folder: Path, marker: Complete) -> None:
    """After this, and only after this, the folder is whole. Raises OSError."""
    write_durably(marker_path(folder), {"layout": LAYOUT, **asdict(marker)})


def plan_of(remote: Remote, source: str) -> dict[str, Any]:
    """Which contents are to be there; two runs with one plan may go on with each other's files."""
    name = parse_source(source)
    return {
        "layout": LAYOUT,
        "source": [name.scheme, name.name, name.path],
        "revision": remote.revision,
        "files": [[file.name, file.size, file.tag] for file in remote.files],
    }


def adopt_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Make `plan` the folder's: from here on a file of its name and size is the one that is meant.

    What another plan left unfinished is removed first, so that at no instant an old file stands under a new plan.

    Raises:
        CheckpointError: the folder holds files of these names that were not fetched.
        OSError: the folder cannot be written.
    """
    path = folder / HIDDEN / "plan.json"
    old = _read(path)
    if old == plan:
        return
    marker_path(folder).unlink(missing_ok=True)
    if old:
        for entry in old.get("files", ()):
            if entry not in plan["files"]:
                inside(folder, str(entry[0])).unlink(missing_ok=True)
        for part in (folder / HIDDEN).glob("*.part"):
            if part.name not in {part_name(*entry) for entry in plan["files"]}:
                part.unlink(missing_ok=True)
    else:
        there = [name for name, _, _ in plan["files"] if inside(folder, name).exists()]
        if there:
            raise CheckpointError(
                "holds files that `plimsoll fetch` did not write", field=str(folder), value=there[0],
                fix="Name a folder of its own",
            )  # fmt: skip
    write_durably(path, plan)


def part_name(name: str, size: int, tag: str) -> str:
    """Of an unfinished file: one of another content never goes on where this one stopped."""
    import hashlib

    return hashlib.sha256(json.dumps([name, size, tag]).encode()).hexdigest()[:32] + ".part"


def part_path(folder: Path, file: RemoteFile) -> Path:
    """Path of a file that is still being fetched."""
    return folder / HIDDEN / part_name(file.name, file.size, file.tag)


def inside(folder: Path, name: str) -> Path:
    """Raises CheckpointError for a name that leads out of the folder, or into what is ours in it."""
    parts = name.split("/")
    if any(part in ("", ".", "..", HIDDEN) or "\0" in part for part in parts):
        raise CheckpointError("is not a name of a file that can be kept", field=str(folder), value=name[:200])
    return folder.joinpath(*parts)


def write_durably(path: Path, content: dict[str, Any], **layout: Any) -> None:
    """Write `content` as JSON: all of it or nothing, even if the process is killed or the machine loses power.

    Args:
        layout: options of `json.dumps`.

    Raises:
        OSError: the folder cannot be written.
    """
    with replacing(path, path.with_name(f"{path.name}.{uuid.uuid4().hex}.new")) as file:
        file.write(json.dumps(content, **layout).encode() + b"\n")


@contextmanager
def replacing(path: Path, aside: Path) -> Iterator[BinaryIO]:
    """What is written meanwhile lies at `path` afterwards, whole and on the disk; it is written to `aside` first.

    Raises OSError; `path` is as it was then, and nothing is left of `aside`.
    """
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """What was renamed into it stays so after a loss of power, where the filesystem knows how."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network filesystems refuse this for folders, and write through anyway.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF):
            raise
    finally:
        os.close(handle)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
