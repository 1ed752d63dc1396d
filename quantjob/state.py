"""What a killed job goes on from, and what tells its work from another's."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import plimsoll
from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.checkpoint import Checkpoint
from plimsoll.checkpoint.complete import write_durably
from plimsoll.checkpoint.json_file import read_object
from plimsoll.checkpoint.quantized.manifest import hash_file
from plimsoll.quantjob.merge import PLAN_NAME
from plimsoll.quantjob.recipe import Recipe
from plimsoll.quantjob.shards import Shard
from plimsoll.quantjob.workers import Workers

#: Raised with every change that gives other bytes for the same recipe.
METHOD_VERSION = 3
STATE_NAME = "state.json"


def fingerprint(
    checkpoint: Checkpoint, weights: str, recipe: Recipe, tokens: str | None, kind: str = "cpu"
) -> dict[str, str]:
    """What decides the bytes of the output, by what a person would call it.

    Args:
        weights: `weights_digest` of the checkpoint.
        tokens: digest of the token ids that calibrate.
        kind: of the devices that search: another one may sum in another order.
    """
    where = "" if kind == "cpu" else f" on {kind}"
    return {
        "checkpoint": checkpoint.digest(),
        "weights": weights,
        "recipe": recipe.encoded(),
        "calibration tokens": tokens or "none",
        "version of plimsoll": f"{plimsoll.__version__} (method {METHOD_VERSION}, torch {torch.__version__}{where})",
    }


def weights_digest(checkpoint: Checkpoint, workers: Workers) -> str:
    """`sha256:…` over the contents of every file of tensors, in the order of their names.

    Raises:
        CheckpointError: a file cannot be read.
    """
    files = sorted(checkpoint.files(), key=lambda path: path.name)
    try:
        found = [[file.name, file.bytes, file.sha256] for file in workers.map(hash_file, files)]
    except OSError as error:
        raise CheckpointError(
            f"cannot be read: {error.strerror}", field=str(error.filename or checkpoint.path),
            fix="Check the file and its permissions",
        ) from None  # fmt: skip
    return "sha256:" + hashlib.sha256(json.dumps(found).encode()).hexdigest()


@dataclass
class State:
    """Where the walk is.

    Attributes:
        fingerprint: of what it makes.
        layers: decoder layers that are written, their outputs kept.
        seconds: worked, interrupted attempts included.
        shards: written, in the order of the layers.
        report: one entry for each layer that is written.
    """

    fingerprint: Mapping[str, str]
    layers: int = 0
    seconds: float = 0.0
    shards: list[Shard] = field(default_factory=list)
    report: list[dict[str, Any]] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """All of it or nothing. Raises OSError."""
        write_durably(folder / STATE_NAME, {"version": 1, **asdict(self)})


def layers_done(folder: Path) -> int | None:
    """Layers that an earlier run wrote into `folder`; None where there was none."""
    path = folder / STATE_NAME
    layers = read_object(path).get("layers") if path.is_file() else None
    return layers if isinstance(layers, int) else None


def load_state(folder: Path, wanted: Mapping[str, str]) -> State | None:
    """The state in `folder`; None where there is none.

    Raises:
        CheckpointError: it is that of other work, unreadable, or a shard it counts on is not there.
    """
    path = folder / STATE_NAME
    if not path.is_file():
        return None
    start_again = f"Remove {folder} to start again, or name another folder"
    found = read_object(path)
    try:
        shards = [Shard(**shard) for shard in found["shards"]]
        state = State(found["fingerprint"], found["layers"], found["seconds"], shards, found["report"])
        changed = [name for name, value in wanted.items() if state.fingerprint.get(name) != value]
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError("is not the state of a quantization", field=str(path), fix=start_again) from None
    if changed:
        raise CheckpointError(
            f"holds unfinished work with other {' and '.join(changed)}", field=str(folder),
            value=str(state.fingerprint.get(changed[0])), fix=start_again,
        )  # fmt: skip
    # While shards are merged some of them are gone: what is left is checked there.
    if not (folder / PLAN_NAME).exists():
        _check_shards(folder, shards, start_again)
    return state


def _check_shards(folder: Path, shards: Sequence[Shard], fix: str) -> None:
    for shard in shards:
        path = folder / "output" / shard.name
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise CheckpointError(
                f"was written with {shard.bytes} bytes", field=str(path),
                value=path.stat().st_size if path.is_file() else "no such file", fix=fix,
            )  # fmt: skip
