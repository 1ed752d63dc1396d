"""What lies in a checkpoint's folder: plain files of bounded size, and no link that leads out of it.

A checkpoint comes from a stranger, and its text files (a chat template, a configuration) reach answers and errors. A
link to a file of the pod, such as its API keys, would make them readable.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from plimsoll.api.errors import CheckpointError

_MIB = 1 << 20
#: What may be read of a checkpoint, by the end of its name, and the most bytes of it; None for weights. Other files may
#: be links to anywhere: they are never read.
READ: Mapping[str, int | None] = {
    ".json": 64 * _MIB, ".jinja": 4 * _MIB, ".txt": 64 * _MIB, ".model": 64 * _MIB, ".tiktoken": 64 * _MIB,
    ".safetensors": None, ".gguf": None,
}  # fmt: skip
#: The folder below a checkpoint's in which transformers looks for files.
TEMPLATES = "additional_chat_templates"
#: Folders between a checkpoint and the `snapshots` of a hub's cache: the commit's, and those of a path below it.
_HUB_DEPTH = 5


def check_plain_files(folder: Path) -> None:
    """Checks that everything that may be read of the checkpoint in `folder` is a plain file inside it.

    The folder itself may be a link: the user names it. Two kinds of links inside are usual and stay: those of a hub's
    cache, from `snapshots/COMMIT` to `blobs`, and those of a Kubernetes volume, to a folder beside them.

    Raises:
        CheckpointError: a file or folder that is a link to somewhere else, or no plain file at all, or too large.
        OSError: the folder cannot be listed.
    """
    home = Path(os.path.realpath(folder))
    inside = [home]
    # The checkpoint of a hub's cache is a commit, or a folder below it.
    inside += [above.parent / "blobs" for above in [*home.parents][:_HUB_DEPTH] if above.name == "snapshots"]
    for entry in _read(folder):
        real = Path(os.path.realpath(entry.path))
        if not any(real.is_relative_to(place) for place in inside):
            raise CheckpointError(
                "is a link that leads out of the checkpoint's folder", field=entry.path,
                fix="Put a copy of the file in its place",
            )  # fmt: skip
        if entry.name == TEMPLATES or not real.exists():
            continue
        status = real.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError("is no plain file", field=entry.path, fix="Download it again")
        most = READ[os.path.splitext(entry.name)[1]]
        if most is not None and status.st_size > most:
            raise CheckpointError(f"is larger than {most} bytes", field=entry.path, value=status.st_size)


def _read(folder: Path) -> Iterator[os.DirEntry[str]]:
    for entry in os.scandir(folder):
        if entry.name == TEMPLATES:
            yield entry
            if not entry.is_symlink() and entry.is_dir():
                yield from (below for below in os.scandir(entry.path) if os.path.splitext(below.name)[1] in READ)
        elif os.path.splitext(entry.name)[1] in READ:
            yield entry
