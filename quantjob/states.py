"""Hidden states of all calibration sequences between two layers: in memory where there is room, always on disk after.

Two files take turns, so that those a layer began with are there until those it ended with are. The file is what a
killed job goes on from; float32, bit by bit what was computed.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class HiddenStates:
    """float32 [S, L, hidden]. `begin` a layer, read its inputs and write its outputs, `keep` them.

    In memory both are one tensor: an output takes the place of its input, so read a sequence before writing it.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int], *, in_memory: bool) -> None:
        self.shape = shape
        self.in_memory = in_memory
        self._folder = folder
        self._held: Tensor | None = None
        self._inputs: Tensor | None = None
        self._outputs: Tensor | None = None

    @staticmethod
    def nbytes(shape: tuple[int, int, int]) -> int:
        """Of the states once."""
        return 4 * shape[0] * shape[1] * shape[2]

    def begin(self, layer: int) -> None:
        """Open the inputs of `layer`, which `keep(layer)` kept. Raises OSError."""
        if self.in_memory:
            if self._held is None:
                self._held = torch.from_numpy(np.fromfile(self._path(layer), np.float32)).view(self.shape)
            self._inputs = self._outputs = self._held
        else:
            self._inputs = self._mapped(layer, "r+")
            self._outputs = self._mapped(layer + 1, "w+")

    def start(self) -> None:
        """Make room for the inputs of layer 0, to be written and kept. Raises OSError."""
        if self.in_memory:
            self._held = torch.empty(self.shape)
            self._outputs = self._held
        else:
            self._outputs = self._mapped(0, "w+")

    def inputs(self, start: int, stop: int) -> Tensor:
        """Sequences [start, stop)."""
        assert self._inputs is not None
        return self._inputs[start:stop]

    def outputs(self, start: int, stop: int) -> Tensor:
        """The same of what was written."""
        assert self._outputs is not None
        return self._outputs[start:stop]

    def write(self, start: int, values: Tensor) -> None:
        """Outputs of the sequences from `start` on."""
        assert self._outputs is not None
        self._outputs[start : start + len(values)] = values

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
        self._inputs = self._outputs = None
        with open(path, "r+b") as file:
            os.fsync(file.fileno())

    def batches(self, size: int) -> Iterator[tuple[int, int]]:
        """[start, stop) of runs of at most `size` sequences."""
        for start in range(0, self.shape[0], size):
            yield start, min(start + size, self.shape[0])

    def remove(self) -> None:
        """Free memory and disk."""
        self._held = self._inputs = self._outputs = None
        for turn in (0, 1):
            self._path(turn).unlink(missing_ok=True)

    def _path(self, layer: int) -> Path:
        return self._folder / f"hidden-{layer % 2}.f32"

    def _mapped(self, layer: int, mode: str) -> Tensor:
        path = self._path(layer)
        if mode == "w+":
            # Room is taken before anything is computed: a full disk found while a map is written ends the process.
            with open(path, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, self.nbytes(self.shape))
        return torch.from_numpy(np.memmap(path, np.float32, "r+", shape=self.shape))
