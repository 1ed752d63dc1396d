"""Bring what serving needs of a source into a folder: once, whole, and from where the last attempt stopped.

A process may be killed at any instant. The folder is whole exactly when it has a marker:

- a plan names the contents that are wanted, and is on the disk before the first of them;
- a file grows as `….part`, whose name holds its size and the store's tag of its content, from the front to the back;
- when it is whole and has the store's checksum, it gets its name;
- when every file has its name, and the readers find a coherent checkpoint, the marker is written.

Two processes that hold the lock at once (see `lock`) write the same bytes to the same places.
"""

import errno
import hashlib
import os
import queue
import threading
import time
from pathlib import Path

from plimsoll.api.errors import CheckpointError, PlimsollError, SourceChangedError
from plimsoll.api.quantity import format_bytes
from plimsoll.checkpoint.complete import (
    HIDDEN,
    Complete,
    adopt_plan,
    inside,
    part_path,
    plan_of,
    read_marker,
    sync_folder,
    write_marker,
)
from plimsoll.checkpoint.inspecting import addressed, digest_of, open_remote
from plimsoll.checkpoint.lock import FolderLock
from plimsoll.checkpoint.open import open_checkpoint
from plimsoll.checkpoint.progress import Progress
from plimsoll.checkpoint.remote import LEAST_BYTES, PIECE, Hasher, Remote, RemoteFile, TransferError

#: Files that come at once: one connection seldom fills a network.
AT_ONCE = 4
#: Attempts in a row that bring next to nothing, before giving up: about two minutes with the waits between them.
ATTEMPTS = 8
#: The same for the list of files; a wrong address should be reported soon.
OPENINGS = 4
LONGEST_WAIT = 30.0
#: Bytes after which what has come is put on the disk: the page cache of a container is its memory.
SYNC_EVERY = 256 << 20
#: Seconds between two looks at a lock that somebody else holds.
LOOK = 0.5


class _LostError(Exception):
    """Somebody else goes on with this folder."""


class Fetcher:
    """One run of `plimsoll fetch`."""

    def __init__(self, source: str, folder: Path, *, revision: str | None = None) -> None:
        """Args: revision: what an inspection found; anything else is refused."""
        self.source, self.folder, self.revision = addressed(source), folder, revision
        self.progress = Progress()
        self.lock = FolderLock(folder / HIDDEN / "lock", self.progress.told)
        self._stop = threading.Event()

    def run(self) -> Complete:
        """Fetch, or wait for the process that fetches.

        Raises:
            SpecError, CheckpointError: in words for the user; what has arrived is kept, and the next run goes on.
        """
        try:
            (self.folder / HIDDEN).mkdir(parents=True, exist_ok=True)
            while True:
                if (marker := read_marker(self.folder)) is not None:
                    return self._accept(marker)
                if self.lock.acquire():
                    try:
                        # Between the look and the lock it may have been finished.
                        found = read_marker(self.folder)
                        return self._accept(found) if found else self._fetch(self._open())
                    except _LostError:
                        continue
                    finally:
                        self.lock.release()
                told = self.lock.told()
                self.progress.follow(told.get("bytes"), told.get("total"))
                time.sleep(LOOK)
        except OSError as error:
            raise self._explained(error) from None

    def _open(self) -> Remote:
        """The source, asked again where it does not answer: another pod of ours may be asking just now."""
        for attempt in range(OPENINGS):
            try:
                return open_remote(self.source)
            except TransferError:
                if attempt == OPENINGS - 1:
                    raise
                time.sleep(2.0**attempt)
        raise AssertionError

    def _accept(self, marker: Complete) -> Complete:
        if not marker.answers(self.source, self.revision):
            raise CheckpointError(
                f"holds {marker.source} at {marker.revision}, whole", field=str(self.folder), value=self.source,
                fix="Name a folder of its own for another source or revision",
            )  # fmt: skip
        self.progress.start(marker.bytes)
        self.progress.have("", marker.bytes)
        return marker

    def _fetch(self, remote: Remote) -> Complete:
        self._check_revision(remote.revision)
        adopt_plan(self.folder, plan_of(remote, self.source))
        self._check_room(remote)
        self.progress.start(remote.bytes)
        self._bring(remote)
        checkpoint = open_checkpoint(self.folder / remote.path if remote.path else self.folder)
        digest = digest_of(checkpoint, remote.files)
        self._check_revision(remote.revision or digest)
        files = tuple((file.name, file.size) for file in remote.files)
        marker = Complete(self.source, remote.revision or digest, digest, remote.bytes, remote.path, files)
        if self.lock.lost.is_set():
            raise _LostError
        write_marker(self.folder, marker)
        return marker

    def _check_revision(self, found: str | None) -> None:
        if None not in (found, self.revision) and found != self.revision:
            raise SourceChangedError(
                f"has changed since it was inspected: it was {self.revision} then", field=self.source, value=found,
                fix="Give spec.model.contentVersion a new value to serve what is there now",
            )  # fmt: skip

    def _check_room(self, remote: Remote) -> None:
        missing = 0
        for file in remote.files:
            if not self._there(file):
                part = part_path(self.folder, file)
                missing += file.size - (part.stat().st_size if part.exists() else 0)
        status = os.statvfs(self.folder)
        free = status.f_bavail * status.f_frsize
        # Filesystems that do not know (some network ones) say 0 of 0.
        if status.f_blocks and missing > free:
            raise CheckpointError(
                f"has {format_bytes(free)} free, and {format_bytes(missing)} are still to come",
                field=str(self.folder), fix="Take a larger volume",
            )  # fmt: skip

    def _there(self, file: RemoteFile) -> bool:
        try:
            return inside(self.folder, file.name).stat().st_size == file.size
        except OSError:
            return False

    def _bring(self, remote: Remote) -> None:
        """All files, the largest first, several at a time. The first failure stops the others."""
        wanted: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
        for file in sorted(remote.files, key=lambda file: -file.size):
            wanted.put(file)
        failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self._stop.clear()

        def work() -> None:
            try:
                while not self._stop.is_set():
                    _File(self, remote, wanted.get_nowait(), self._stop).bring()
            except queue.Empty:
                pass
            except BaseException as error:
                failures.put(error)
                self._stop.set()

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(AT_ONCE, len(remote.files)))]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                if self.lock.lost.is_set():
                    raise _LostError
                if not failures.empty():
                    raise failures.get()
                threads[0].join(0.1)
                threads = [thread for thread in threads if thread.is_alive()] or threads
        finally:
            self._stop.set()
        if not failures.empty():
            raise failures.get()

    def _explained(self, error: OSError) -> PlimsollError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            done, total = self.progress.bytes, self.progress.total or 0
            return CheckpointError(
                f"is full: {format_bytes(done)} of {format_bytes(total)} are here", field=str(self.folder),
                fix="Free space or take a larger volume; what has arrived is kept",
            )  # fmt: skip
        reason = error.strerror or type(error).__name__
        return CheckpointError(
            f"cannot be written: {reason}", field=str(error.filename or self.folder), fix="Check the volume"
        )


class _File:
    """One file on its way."""

    def __init__(self, fetcher: Fetcher, remote: Remote, file: RemoteFile, stop: threading.Event) -> None:
        self.remote, self.file, self.stop = remote, file, stop
        self.progress = fetcher.progress
        self.target = inside(fetcher.folder, file.name)
        self.part = part_path(fetcher.folder, file)

    def bring(self) -> None:
        """Raises CheckpointError and OSError; returns early, without the file, once `stop` is set."""
        try:
            if self.target.stat().st_size == self.file.size:
                self.progress.have(self.file.name, self.file.size)
                return
        except FileNotFoundError:
            pass
        wrong: list[str] = []
        while not self.stop.is_set():
            found = self._grow()
            if found is None:
                return
            if not self._wrong(found, wrong):
                break
        else:
            return
        self.target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.replace(self.part, self.target)
        except FileNotFoundError:
            # Another process that held the lock for a moment was first.
            if self.target.stat().st_size != self.file.size:
                raise
        sync_folder(self.target.parent)

    def _wrong(self, found: str, before: list[str]) -> bool:
        """Whether the content is not what the store says, and another attempt may bring it; then it is thrown away."""
        kind, _, told = (self.file.checksum or "").partition(":")
        if not self.remote.trusts(self.file) or found == told:
            return False
        if found in before and kind.endswith("?"):
            # Twice the same content: what looked like a checksum is none.
            return False
        if len(before) >= 2:
            raise CheckpointError(
                f"{self.file.name} arrives damaged: its {kind} is {found}, the source says {told}",
                field=self.remote.label, fix="The source, or something on the way, is broken",
            )  # fmt: skip
        before.append(found)
        self.part.unlink(missing_ok=True)
        return True

    def _grow(self) -> str | None:
        """Bring what is missing of the part, and put it on the disk; gives its checksum, or None if it was stopped."""
        # Not for appending: bytes keep their place while another process writes.
        with open(os.open(self.part, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=PIECE) as out:
            at = out.seek(0, os.SEEK_END)
            if at > self.file.size:
                at = out.seek(out.truncate(0))
            hasher = self._hashed(at)
            self.progress.have(self.file.name, at)
            attempts, synced = 0, at
            while at < self.file.size:
                before = at
                try:
                    for piece in self.remote.stream(self.file, at):
                        if self.stop.is_set():
                            return None
                        out.write(piece)
                        hasher.update(piece)
                        at += len(piece)
                        self.progress.brought(self.file.name, len(piece))
                        if at - synced >= SYNC_EVERY:
                            out.flush()
                            os.fdatasync(out.fileno())
                            synced = at
                    if at < self.file.size:
                        raise TransferError(f"{self.file.name} ended early", field=self.remote.label)
                except TransferError:
                    # What drips in is no progress: a hostile source would be asked for ever.
                    attempts = 1 if at - before >= LEAST_BYTES else attempts + 1
                    if attempts >= ATTEMPTS:
                        raise
                    out.flush()
                    if self.stop.wait(min(LONGEST_WAIT, 0.5 * 2 ** (attempts - 1))):
                        return None
            out.flush()
            os.fsync(out.fileno())
        return hasher.hexdigest()

    def _hashed(self, size: int) -> Hasher:
        """The hash of the bytes that are here already, computed again: the earlier process took its state with it."""
        hasher = _hasher(self.file)
        with open(self.part, "rb") as part:
            while size > 0 and not self.stop.is_set() and (piece := part.read(min(PIECE, size))):
                hasher.update(piece)
                size -= len(piece)
        return hasher


class _Nothing:
    def update(self, data: object, /) -> None:
        pass

    def hexdigest(self) -> str:
        return ""


def _hasher(file: RemoteFile) -> Hasher:
    kind = (file.checksum or "").partition(":")[0]
    if kind == "sha256":
        return hashlib.sha256()
    if kind == "gitblob":
        # As git names a file that it keeps itself.
        return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    return hashlib.md5(usedforsecurity=False) if kind == "md5?" else _Nothing()
