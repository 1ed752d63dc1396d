"""What a killed evaluation goes on from: hidden states after each layer of each model, figures of each window.

In `folder`: `states-MODEL-LAYER.f32`, float32 bit by bit what was computed; `window-NUMBER.npy`, float64; `state.json`,
which counts on nothing that is not on the disk yet. Models are numbered in the order they are compared in.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.complete import replacing, write_durably
from plimsoll.checkpoint.json_file import read_object

_STATE = "state.json"


class KeptEvaluation:
    """One comparison of `models` checkpoints, going on from what `folder` holds of it.

    Attributes:
        layers: by model, those it has run through.
        errors: by model, of each of those layers that has a counterpart in the reference's.
    """

    def __init__(self, folder: Path, key: str, models: int, proceed: Callable[[], None] = lambda: None) -> None:
        """Removes what `folder` holds of another comparison.

        Args:
            key: what decides the figures: weights, tokens, versions.
            proceed: called before anything is kept; raises where this process may not write any more.

        Raises:
            OSError: nothing can be written there.
        """
        self._folder = folder
        self._key = hashlib.sha256(key.encode()).hexdigest()
        self._proceed = proceed
        self.layers = [0] * models
        self.errors: list[list[float]] = [[] for _ in range(models)]
        if not self._load():
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(parents=True)

    @property
    def done(self) -> int:
        """Layers and windows there are."""
        return sum(self.layers) + len(list(self._folder.glob("window-*.npy")))

    def restore(self, model: int, states: Tensor) -> bool:
        """`states` float32 [S, L, hidden] become those `model` had reached; False where it has run through no layer.

        Raises:
            CheckpointError: what was kept has changed since.
        """
        if not self.layers[model]:
            return False
        path = self._states(model, self.layers[model])
        with open(path, "rb") as file:
            if any(file.readinto(_bytes(one)) != one.nbytes for one in states):
                raise CheckpointError(
                    "was cut after it was written", field=str(path), fix=f"Remove {self._folder} to measure again"
                )
        return True

    def keep_layer(self, model: int, states: Tensor, error: float | None) -> None:
        """`model` has run through one more layer, which left `states`. Raises OSError; the layers before it stay."""
        self._proceed()
        layer = self.layers[model] + 1
        path = self._states(model, layer)
        with replacing(path, path.with_suffix(".partial")) as file:
            for one in states:
                file.write(_bytes(one))
        self.layers[model] = layer
        self.errors[model] += [] if error is None else [error]
        # Hexadecimal: exact, and for what is no finite number too.
        told = [[one.hex() for one in errors] for errors in self.errors]
        write_durably(self._folder / _STATE, {"key": self._key, "layers": self.layers, "errors": told})
        self._states(model, layer - 1).unlink(missing_ok=True)

    def window(self, number: int) -> npt.NDArray[np.float64] | None:
        """What `keep_window` kept; None where that window is still to be looked at."""
        path = self._window(number)
        return np.load(path, allow_pickle=False) if path.exists() else None

    def keep_window(self, number: int, figures: npt.NDArray[np.float64]) -> None:
        """`figures` of a window, of any shape. Raises OSError."""
        self._proceed()
        path = self._window(number)
        with replacing(path, path.with_suffix(".partial")) as file:
            np.save(file, figures)

    def _load(self) -> bool:
        """Whether the folder holds this comparison."""
        try:
            found = read_object(self._folder / _STATE)
            layers = [int(layer) for layer in found["layers"]]
            errors = [[float.fromhex(one) for one in some] for some in found["errors"]]
        except (CheckpointError, KeyError, TypeError, ValueError):
            return False
        if found.get("key") != self._key or len(layers) != len(self.layers):
            return False
        if any(layer and not self._states(model, layer).exists() for model, layer in enumerate(layers)):
            return False
        self.layers, self.errors = layers, errors
        return True

    def _states(self, model: int, layer: int) -> Path:
        return self._folder / f"states-{model}-{layer}.f32"

    def _window(self, number: int) -> Path:
        return self._folder / f"window-{number}.npy"


def _bytes(sequence: Tensor) -> memoryview:
    assert sequence.dtype is torch.float32
    return memoryview(sequence.numpy()).cast("B")  # type: ignore[arg-type]
