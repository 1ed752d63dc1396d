"""A folder or GGUF file that is mounted, as a source: found in it, and read in ranges."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.gguf_split import part_names, whole_files
from plimsoll.checkpoint.plain_files import check_plain_files
from plimsoll.checkpoint.remote import PIECE, Remote, RemoteFile, choose

#: Folders below the one named that are searched for a checkpoint, and how many entries are looked at.
DEPTH = 4
MOST_ENTRIES = 50_000
#: An image keeps its models here, by default.
USUAL = "models"


def locate(root: Path) -> str:
    """Where below `root` its only checkpoint lies: `` for `root` itself, else a folder or GGUF file, with slashes.

    A checkpoint in `root` itself wins, then one that lies alone in `models`; else it must be the only one there is.

    Raises:
        CheckpointError: none, or several; they are named.
    """
    if _holds(root):
        return ""
    found = sorted(_below(root))
    usual = [path for path in found if path.split("/")[0] == USUAL]
    for candidates in (usual, found):
        if len(candidates) == 1:
            return candidates[0]
    if not found:
        # Says what is there instead, in the words for a folder that holds no checkpoint.
        choose(_listed(root), str(root))
        return ""
    shown = ", ".join(found[:5]) + (" …" if len(found) > 5 else "")
    raise CheckpointError(
        f"holds {len(found)} checkpoints: {shown}", field=str(root), fix="Name one at the end of the source"
    )


def _holds(folder: Path) -> bool:
    names = [entry.name for entry in os.scandir(folder) if entry.is_file()]
    whole = "config.json" in names and any(name.endswith(".safetensors") for name in names)
    return whole or len(whole_files(names)) == 1


def _below(root: Path) -> Iterator[str]:
    seen = 0
    for folder, folders, files in os.walk(root):
        here = os.path.relpath(folder, root)
        depth = 0 if here == "." else here.count(os.sep) + 1
        seen += len(folders) + len(files)
        if seen > MOST_ENTRIES:
            raise CheckpointError(
                f"holds more than {MOST_ENTRIES} files", field=str(root), fix="Name the folder of one model"
            )
        folders[:] = sorted(name for name in folders if not name.startswith(".") and depth < DEPTH)
        if "config.json" in files and any(name.endswith(".safetensors") for name in files):
            yield "" if here == "." else here
        for name in whole_files(files):
            yield name if here == "." else f"{here}/{name}"


def _listed(folder: Path) -> list[RemoteFile]:
    found = []
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            found.append(RemoteFile(f"{entry.name}/", 0, ""))
        elif entry.is_file():
            found.append(_described(entry.name, entry.stat()))
    return sorted(found, key=lambda file: file.name)


def _described(name: str, status: os.stat_result) -> RemoteFile:
    return RemoteFile(name, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


class FolderRemote(Remote):
    """See `Remote`. Names keep their place below what the source names, so that a copy can be mounted instead."""

    def __init__(self, root: Path) -> None:
        """Args: root: a folder, whose only checkpoint is meant, or a GGUF file.

        Raises:
            CheckpointError: nothing there that can be served.
        """
        self.label = f"file://{root}"
        self.revision = None
        self.files: Sequence[RemoteFile]
        try:
            if root.is_file():
                self.root, self.path = root.parent, root.name
                self.files = self._parts(self.path)
                return
            self.root, self.path = root, locate(root)
            place = root / self.path
            if place.is_file():
                self.files = self._parts(self.path)
                return
            # Before any of them is copied to where it is a plain file.
            check_plain_files(place)
            needed, within = choose(_listed(place), f"file://{place}")
            under = f"{self.path}/" if self.path else ""
            self.path = under + within if within else self.path
            self.files = [RemoteFile(under + file.name, file.size, file.tag) for file in needed]
        except OSError as error:
            raise CheckpointError(f"cannot be read: {error.strerror or error}", field=self.label) from None

    def _parts(self, name: str) -> list[RemoteFile]:
        """A GGUF file, or what is there of all parts of a split one."""
        parts = [part for part in part_names(name) if (self.root / part).is_file()]
        return [_described(part, (self.root / part).stat()) for part in parts]

    @property
    def place(self) -> Path:
        """The checkpoint itself."""
        return self.root / self.path if self.path else self.root

    def _pieces(self, file: RemoteFile, start: int, stop: int) -> Iterator[bytes]:
        left = stop - start
        try:
            with open(self.root / file.name, "rb", buffering=0) as content:
                if _described(file.name, os.fstat(content.fileno())).tag != file.tag:
                    raise CheckpointError(f"{file.name} has changed while it was read", field=self.label)
                content.seek(start)
                while left > 0 and (piece := content.read(min(PIECE, left))):
                    left -= len(piece)
                    yield piece
        except OSError as error:
            raise CheckpointError(f"{file.name} cannot be read: {error.strerror}", field=self.label) from None
