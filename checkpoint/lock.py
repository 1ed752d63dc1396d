"""A lock in a folder that several machines share: one of them works, the others see that it does, and one takes over.

A file created exclusively, which works on every network filesystem, holds a text that its owner rewrites every few
seconds. A waiting process trusts only its own clock: a text that stands still for `STALE` seconds has lost its owner.
An owner that was only paused (a machine suspended, a filesystem that hung) may go on for a moment beside the one that
took over. What the lock protects must bear that, and then it costs double work and nothing else.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

#: Seconds between two rewritings, and without one after which the owner is taken for dead.
BEAT = 2.0
STALE = 20.0
#: Bytes of a lock's text that are looked at.
LONGEST = 1 << 16
#: A lock is opened without following a link, and without waiting for a FIFO's other end.
SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class FolderLock:
    """One process's part in the lock at `path`.

    Attributes:
        lost: set once somebody else has taken the lock over, or it cannot be held any longer.
    """

    def __init__(self, path: Path, say: Callable[[], Mapping[str, Any]] = dict) -> None:
        """Args: say: what goes into the text for those who wait; called from another thread."""
        self.path = path
        self.lost = threading.Event()
        self._say = say
        self._me = uuid.uuid4().hex
        self._beats = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._seen: bytes | None = None
        self._seen_at = 0.0

    def acquire(self) -> bool:
        """Take the lock if it is free or its owner is gone; does not wait.

        Raises:
            OSError: nothing can be created there.
        """
        if not self._create() and not (self._abandoned() and self._clear() and self._create()):
            return False
        self.lost.clear()
        self._stop.clear()
        self._seen = None
        self._thread = threading.Thread(target=self._run, name="lock", daemon=True)
        self._thread.start()
        return True

    def release(self) -> None:
        """Give the lock up; safe to call twice, and without holding it. Takes no lock of its own: a signal may come."""
        self._stop.set()
        with contextlib.suppress(OSError):
            if self._owner(_read(self.path)) == self._me:
                self.path.unlink()

    def told(self) -> Mapping[str, Any]:
        """What the owner says of its work; empty where that is unreadable."""
        try:
            text = json.loads(_read(self.path))
        except (OSError, ValueError, RecursionError):
            return {}
        return text if isinstance(text, dict) else {}

    def _create(self) -> bool:
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with open(handle, "wb") as file:
            file.write(self._text())
        return True

    def _text(self) -> bytes:
        self._beats += 1
        text = {**self._say(), "owner": self._me, "beat": self._beats, "process": os.getpid(), "place": _place()}
        return json.dumps(text).encode()

    @staticmethod
    def _owner(text: bytes) -> str | None:
        try:
            return str(json.loads(text)["owner"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    def _abandoned(self) -> bool:
        # Opened again each time: a network filesystem then asks its server.
        try:
            text = _read(self.path)
        except OSError:
            return False
        now = time.monotonic()
        if text != self._seen:
            self._seen, self._seen_at = text, now
        return now - self._seen_at > STALE or _died_here(text)

    def _clear(self) -> bool:
        """Move the abandoned lock out of the way; False where somebody else was faster."""
        aside = self.path.with_name(f"{self.path.name}.{self._me}")
        try:
            os.rename(self.path, aside)
            taken = _read(aside)
            if taken != self._seen:
                # The owner woke up, or another took over, since it was looked at: put it back.
                with contextlib.suppress(OSError):
                    os.link(aside, self.path)
            aside.unlink()
        except OSError:
            return False
        return taken == self._seen

    def _run(self) -> None:
        failures = 0
        while not self._stop.wait(BEAT):
            try:
                with open(os.open(self.path, os.O_RDWR | SAFELY), "r+b", buffering=0) as file:
                    owner = self._owner(file.read(LONGEST))
                    if owner != self._me:
                        break
                    file.seek(0)
                    file.write(text := self._text())
                    file.truncate(len(text))
                failures = 0
            except FileNotFoundError:
                break
            except OSError:
                failures += 1
                if failures * BEAT > STALE:
                    break
        if not self._stop.is_set():
            self.lost.set()


def _read(path: Path) -> bytes:
    """The text of a lock; any writer of the folder can have put anything there. Raises OSError."""
    with open(os.open(path, os.O_RDONLY | SAFELY), "rb", buffering=0) as file:
        return file.read(LONGEST)


def _place() -> list[str]:
    """Where process numbers mean the same: this machine, and its namespace of processes."""
    try:
        return [socket.gethostname(), os.readlink("/proc/self/ns/pid")]
    except OSError:
        return [socket.gethostname(), ""]


def _died_here(text: bytes) -> bool:
    """Whether the owner ran where we run, and no longer does: no need to wait for it to stand still."""
    try:
        told = json.loads(text)
        if told["place"] != _place() or not told["place"][1]:
            return False
        os.kill(int(told["process"]), 0)
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, TypeError, IndexError, OSError, OverflowError, RecursionError):
        return False
    return False
