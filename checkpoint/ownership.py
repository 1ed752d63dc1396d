"""Files and folders that only this user, or root, can have written: code and caches are taken from no other.

Each is judged by its open descriptor, so it cannot be replaced between the check and the use.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def own_folder(path: Path, *, follow: bool = True) -> Iterator[str]:
    """The folder as `/proc/self/fd/N`, which goes on naming it when its path is renamed or replaced.

    Args:
        follow: whether the last part of `path` may be a symbolic link.

    Raises:
        PermissionError: another user owns it, or others may write into it; `strerror` says which.
        OSError: it cannot be opened, or is no folder.
    """
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    try:
        check_own(handle, path)
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)


def open_own(path: Path) -> int:
    """A descriptor of the regular file, for reading; the caller closes it.

    Raises:
        PermissionError: another user owns the file or its folder, or others may write to one of them.
        OSError: it cannot be opened.
    """
    with own_folder(path.parent) as folder:
        # Neither a link nor a FIFO, which would wait for a writer, stands in for the file.
        handle = os.open(f"{folder}/{path.name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            check_own(handle, path)
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise PermissionError(0, "is not a regular file", str(path))
        except BaseException:
            os.close(handle)
            raise
        return handle


def check_own(handle: int, path: Path) -> None:
    """Raises PermissionError unless this user or root owns the open file, and no other user may write to it."""
    status = os.fstat(handle)
    if status.st_uid not in (os.geteuid(), 0):
        raise PermissionError(0, f"belongs to another user (uid {status.st_uid})", str(path))
    if status.st_mode & 0o022:
        raise PermissionError(0, f"can be written by other users (mode {stat.S_IMODE(status.st_mode):04o})", str(path))
