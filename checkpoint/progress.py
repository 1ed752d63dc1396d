"""How far a download is: counted by several threads, read by a status page, a bar and a log."""

import threading
import time
from typing import Any


class Progress:
    """Bytes here and bytes wanted. What was here before this run counts as here, and not as speed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = self._began = time.monotonic()
        self._files: dict[str, int] = {}
        self._brought = 0
        self.total: int | None = None
        self._told: int | None = None
        self.waiting = False

    def start(self, total: int) -> None:
        """The sizes are known: from here on speed is measured."""
        with self._lock:
            self.total, self.waiting = total, False
            self._files.clear()
            self._brought = 0
            self._began = time.monotonic()

    def have(self, name: str, size: int) -> None:
        """So much of a file is here without being brought just now; it may be less than before."""
        with self._lock:
            self._files[name] = size

    def brought(self, name: str, size: int) -> None:
        """Add `size` bytes that have arrived of file `name`."""
        with self._lock:
            self._files[name] = self._files.get(name, 0) + size
            self._brought += size

    def follow(self, done: Any, total: Any) -> None:
        """Another process brings it, and says this."""
        with self._lock:
            self.waiting = True
            if isinstance(done, int) and isinstance(total, int):
                self._told, self.total = done, total

    @property
    def bytes(self) -> int:
        with self._lock:
            return self._told or 0 if self.waiting else sum(self._files.values())

    def told(self) -> dict[str, Any]:
        """For those who wait for this process."""
        return {"bytes": self.bytes, "total": self.total}

    def status(self) -> dict[str, Any]:
        """`bytes`, `total` (None until it is known), `seconds` so far and `eta` in seconds (None until it is known)."""
        done, total = self.bytes, self.total
        speed = self.speed()
        eta = None if total is None or not speed else round(max(0, total - done) / speed, 1)
        return {"bytes": done, "total": total, "seconds": round(time.monotonic() - self._started, 1), "eta": eta}

    def speed(self) -> float:
        """Bytes a second of this run; 0 before the first."""
        with self._lock:
            if self.waiting or not self._brought:
                return 0.0
            return self._brought / max(1e-3, time.monotonic() - self._began)
