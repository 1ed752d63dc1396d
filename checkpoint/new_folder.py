"""A folder that appears whole or not at all."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plimsoll.api.errors import CheckpointError


def refuse_existing(out: Path) -> None:
    """Raises CheckpointError where something is at `out`."""
    if os.path.lexists(out):
        raise CheckpointError("exists already", field=str(out), fix="Name a folder that does not exist yet")


@contextmanager
def new_folder(out: Path, size: int, described: str = "") -> Iterator[Path]:
    """An empty folder beside `out`, which becomes `out` at the end of the block. A block that fails leaves nothing.

    Args:
        size: bytes that will be written into it.
        described: follows the size in the message that the disk cannot hold it, such as ` in bfloat16`.

    Raises:
        CheckpointError: the disk cannot hold it, or it cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if free < size:
            raise CheckpointError(
                f"takes {size} bytes{described}, the disk has {free} free", field=str(out), fix="Free space there"
            )
        # Beside the target, so that the last step is one rename on one file system.
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.partial-") as scratch:
            folder = Path(scratch) / "model"
            folder.mkdir()
            yield folder
            folder.rename(out)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise CheckpointError(
            f"cannot be written: {'the disk is full' if full else error.strerror or error}",
            field=str(out),
            fix="Free space there, or name another place; nothing was left behind",
        ) from error
