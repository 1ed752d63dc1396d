"""Windows of `self` text that were drawn already: a job that was killed while it sampled draws only the rest."""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from plimsoll.checkpoint.complete import replacing


class DrawnWindows:
    """The windows of one seed, in `FOLDER/sampled-SEED.jsonl`: a header, then one line for each finished window.

    A window depends on its number, the seed, the weights and the precision alone, so a job that wants more windows
    keeps those that are there.

    Attributes:
        precision: of the engine that drew `windows`; None while nothing is drawn.
        windows: token ids by the number of the window.
    """

    def __init__(self, folder: Path | None, key: str, seed: int) -> None:
        """Reads what is there for the same `key`.

        Args:
            folder: None keeps windows in memory alone.
            key: what decides the tokens besides seed and precision: weights, length of a window, version.
        """
        self.precision: str | None = None
        self.windows: dict[int, list[int]] = {}
        self.seed = seed
        self._path = None if folder is None else folder / f"sampled-{seed}.jsonl"
        self._key = hashlib.sha256(key.encode()).hexdigest()
        if self._path is not None:
            with suppress(OSError):
                self._load(self._path.read_text())

    def begin(self, precision: str) -> None:
        """Windows of `precision` follow; those of another precision are dropped. Raises OSError."""
        if precision != self.precision:
            self.precision, self.windows = precision, {}
        if self._path is None:
            return
        # Written again: the last line of a killed run may be cut in the middle.
        lines = [self._header(), *(_line(number, ids) for number, ids in sorted(self.windows.items()))]
        with replacing(self._path, self._path.with_suffix(".new")) as file:
            file.write("".join(lines).encode())

    def keep(self, number: int, ids: Sequence[int]) -> None:
        """Window `number` is finished, and on the disk when this returns. Raises OSError."""
        self.windows[number] = list(ids)
        if self._path is not None:
            with open(self._path, "a") as file:
                file.write(_line(number, ids))
                file.flush()
                os.fsync(file.fileno())

    def _header(self) -> str:
        return json.dumps({"key": self._key, "precision": self.precision}) + "\n"

    def _load(self, text: str) -> None:
        first, *lines = text.split("\n")
        try:
            header = json.loads(first)
            if header["key"] != self._key:
                return
            self.precision = str(header["precision"])
            for line in lines:
                number, ids, check = json.loads(line)
                if check == _check(ids):
                    self.windows[int(number)] = [int(token) for token in ids]
        except (ValueError, KeyError, TypeError):
            # The last line was being written when the process was killed.
            return


def _line(number: int, ids: Sequence[int]) -> str:
    return json.dumps([number, list(ids), _check(ids)]) + "\n"


def _check(ids: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:16]
