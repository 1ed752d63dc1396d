"""Hidden states of all calibration sequences between two layers: in memory where there is room, always on disk after.

On disk alone they are read and written a batch at a time and not mapped: mapped pages count as memory of the process.

Two files take turns, so that those a layer began with are there until those it ended with are. The file is what a
killed job goes on from; float32, bit by bit what was computed.
"""

import os
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plimsoll.quantjob.failures import damaged


class HiddenStates:
    """float32 [S, L, hidden]. `begin` a layer, read its inputs and write its outputs, `keep` them.

    In memory both are one tensor: an output takes the place of its input, so read a sequence before writing it.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int], *, in_memory: bool) -> None:
        self.shape = shape
        self.in_memory = in_memory
        self._folder = folder
        self._held: Tensor | None = None
        self._layer = 0

    @staticmethod
    def nbytes(shape: tuple[int, int, int]) -> int:
        """Of the states once."""
        return 4 * shape[0] * shape[1] * shape[2]

    def begin(self, layer: int) -> None:
        """Go on with the inputs of `layer`, which `keep(layer)` kept. Raises OSError."""
        if self.in_memory:
            if self._held is None:
                self._held = self._read(layer, 0, self.shape[0])
        else:
            self._layer = layer
            self._make_room(layer + 1)

    def start(self) -> None:
        """Make room for the inputs of layer 0, to be written and kept. Raises OSError."""
        if self.in_memory:
            self._held = torch.empty(self.shape)
        else:
            self._layer = -1
            self._make_room(0)

    def inputs(self, start: int, stop: int) -> Tensor:
        """Sequences [start, stop). Raises OSError, CheckpointError for a file that was cut short."""
        return self._read(self._layer, start, stop) if self._held is None else self._held[start:stop]

    def outputs(self, start: int, stop: int) -> Tensor:
        """The same of what was written. Raises OSError."""
        return self._read(self._layer + 1, start, stop) if self._held is None else self._held[start:stop]

    def write(self, start: int, values: Tensor) -> None:
        """Outputs of the sequences from `start` on. Raises OSError."""
        if self._held is not None:
            self._held[start : start + len(values)] = values
            return
        with open(self._path(self._layer + 1), "r+b") as file:
            file.seek(self.nbytes((start, *self.shape[1:])))
            file.write(values.numpy().data)

    def keep(self, layer: int) -> None:
        """What was written are the inputs of `layer`, on the disk from here on. Raises OSError."""
        path = self._path(layer)
        if self.in_memory:
            assert self._held is not None
            with open(path, "wb") as file:
                for sequence in self._held:
                    file.write(memoryview(sequence.numpy()).cast("B"))
                file.flush()
                os.fsync(file.fileno())
            return
        with open(path, "r+b") as file:
            os.fsync(file.fileno())

    def batches(self, size: int) -> Iterator[tuple[int, int]]:
        """[start, stop) of runs of at most `size` sequences."""
        for start in range(0, self.shape[0], size):
            yield start, min(start + size, self.shape[0])

    def remove(self) -> None:
        """Free memory and disk."""
        self._held = None
        for turn in (0, 1):
            self._path(turn).unlink(missing_ok=True)

    def _path(self, layer: int) -> Path:
        return self._folder / f"hidden-{layer % 2}.f32"

    def _read(self, layer: int, start: int, stop: int) -> Tensor:
        path, shape = self._path(layer), (stop - start, *self.shape[1:])
        values = np.fromfile(path, np.float32, prod(shape), offset=self.nbytes((start, *self.shape[1:])))
        if len(values) < prod(shape):
            raise damaged(path, self._folder, "holds fewer values than were written")
        return torch.from_numpy(values).view(shape)

    def _make_room(self, layer: int) -> None:
        """For what will be written: a full disk is found before anything is computed."""
        with open(self._path(layer), "wb") as file:
            os.posix_fallocate(file.fileno(), 0, self.nbytes(self.shape))
