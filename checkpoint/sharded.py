"""A checkpoint cut for the ranks of a tensor-parallel group by `plimsoll shard`: a file a rank, read front to back.

Beside the files of the model's folder there are `rank-R-of-N.safetensors`, whose tensors are called as the stored one
that they are cut from, with rows and columns behind: `model.norm.weight[0:576,0:1]`; and `plimsoll-shards.json`, which
has the headers of the whole model and says what each rank holds.
"""

import copy
import re
from collections.abc import Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from plimsoll.api.config_values import short
from plimsoll.api.errors import CheckpointError, SpecError
from plimsoll.api.shard import MOST_RANKS, Run, Shard
from plimsoll.checkpoint.huggingface import HuggingFaceCheckpoint
from plimsoll.checkpoint.json_file import read_object
from plimsoll.checkpoint.safetensors_file import STORAGE, StoredTensor, read_header

SHARDS_NAME = "plimsoll-shards.json"
VERSION = 1
_CUT = re.compile(r"(?P<name>.+)\[(\d+):(\d+),(\d+):(\d+)\]")
_FIX = "Cut the checkpoint again with `plimsoll shard`, or copy it again"

Piece = tuple[Run, Run, StoredTensor]
"""Rows and columns of a tensor of the whole model, and where they lie."""


def rank_file(rank: int, tensor: int) -> str:
    """The name of the file of a rank."""
    return f"rank-{rank}-of-{tensor}.safetensors"


class ShardedCheckpoint(HuggingFaceCheckpoint):
    """See `Checkpoint`. Facts and tensors are those of the whole model; weights are read from `part`."""

    def _find_tensors(self) -> None:
        path = self.path / SHARDS_NAME
        said = read_object(path)
        if said.get("version") != VERSION:
            raise CheckpointError(
                f"must be {VERSION}", field=f"{path}: version", value=short(said.get("version")), fix=_FIX
            )
        self._shards = tuple(_shards(said.get("shards"), path))
        self._precision = str(said.get("precision"))[:40]
        count = len(self._shards)
        self._files = [self.path / rank_file(rank, count) for rank in range(count)]
        sizes = said.get("bytes")
        for index, file in enumerate(self._files):
            found = file.stat().st_size if file.is_file() else "no such file"
            if not isinstance(sizes, list) or len(sizes) != count or found != sizes[index]:
                raise CheckpointError("was written with another size", field=str(file), value=found, fix=_FIX)
        for name, (dtype, shape) in _headers(said.get("tensors"), path).items():
            nbytes = prod(shape) * np.dtype(STORAGE[dtype]).itemsize
            self._stored[name] = path, StoredTensor(name, dtype, shape, 0, nbytes)
        self._pieces: Mapping[str, list[Piece]] = {}
        self._file = path

    def part(self, shard: Shard | None) -> "ShardedCheckpoint":
        tensor, count = 1 if shard is None else shard.tensor, len(self._shards)
        if tensor != count:
            raise SpecError(
                f"{self.path} is cut for a tensor-parallel size of {count}", field="spec.parallelism.tensor",
                value=tensor, fix=f"Use {count}, or the checkpoint that it was cut from",
            )  # fmt: skip
        assert shard is not None
        if shard != self._shards[shard.rank]:
            raise SpecError(
                f"{self.path} is cut for {self._precision}, whose groups of codes lie otherwise",
                field="spec.precision", fix=f"Use {self._precision}, or cut the checkpoint for another precision",
            )  # fmt: skip
        found = copy.copy(self)
        found._file, found._pieces, found._held = self._files[shard.rank], {}, None
        pieces: dict[str, list[Piece]] = {}
        for key, stored in read_header(found._file).items():
            match = _CUT.fullmatch(key)
            if match is None:
                raise CheckpointError("is no part of a tensor", field=f"{found._file}: {key[:200]}", fix=_FIX)
            first, last, left, right = (int(number) for number in match.groups()[1:])
            pieces.setdefault(match["name"], []).append(((first, last), (left, right), stored))
        found._pieces = pieces
        return found

    def place(self, name: str, rows: Run, columns: Run, size: int) -> tuple[Path, int, int]:
        if not self._pieces:
            raise CheckpointError(
                f"is cut for {len(self._shards)} ranks, of which none has the whole model", field=str(self.path),
                fix="Use the checkpoint that it was cut from",
            )  # fmt: skip
        for (first, last), (left, right), stored in self._pieces.get(name, ()):
            step = (right - left) * size
            if stored.dtype != self._stored[name][1].dtype or stored.nbytes != (last - first) * step:
                break
            if first <= rows[0] <= rows[1] <= last and left <= columns[0] <= columns[1] <= right:
                return self._file, stored.start + (rows[0] - first) * step + (columns[0] - left) * size, step
        raise CheckpointError(
            f"does not hold rows {rows[0]}:{rows[1]}, columns {columns[0]}:{columns[1]}",
            field=f"{self._file}: {name}", fix=_FIX,
        )  # fmt: skip


def description(checkpoint: HuggingFaceCheckpoint, shards: tuple[Shard, ...], precision: str) -> dict[str, Any]:
    """What `plimsoll-shards.json` says of a checkpoint that is cut so, but for the bytes of its files."""
    wanted = {stored.name for shard in shards for stored, _, _ in checkpoint.stored_cuts(shard).values()}
    return {
        "version": VERSION,
        "source": checkpoint.digest(),
        "precision": precision,
        "shards": [asdict(shard) for shard in shards],
        "tensors": {
            name: [tensor.dtype, list(tensor.shape)]
            for name, tensor in checkpoint.stored_tensors.items()
            if name in wanted
        },
    }


def _shards(given: object, path: Path) -> list[Shard]:
    found = []
    for rank, item in enumerate(given if isinstance(given, list) else ()):
        try:
            runs = {name: _run(item[name]) for name in ("queries", "keys", "inner", "vocab")}
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(
                "must be runs", field=f"{path}: shards[{rank}]", value=short(item), fix=_FIX
            ) from None
        found.append(Shard(rank, len(given), **runs))  # type: ignore[arg-type]
    if not 2 <= len(found) <= MOST_RANKS:
        raise CheckpointError(f"must be 2 to {MOST_RANKS}", field=f"{path}: shards", value=short(given), fix=_FIX)
    return found


def _run(given: Any) -> Run:
    start, stop = given
    if type(start) is not int or type(stop) is not int or not 0 <= start < stop:
        raise ValueError(given)
    return start, stop


def _headers(given: object, path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    found = {}
    for name, item in (given if isinstance(given, dict) else {}).items():
        fits = isinstance(item, list) and len(item) == 2 and item[0] in STORAGE and isinstance(item[1], list)
        if not fits or not all(type(size) is int and size >= 0 for size in item[1]) or len(item[1]) > 8:
            raise CheckpointError(
                "must be a dtype and a shape", field=f"{path}: tensors: {name[:200]}", value=short(item), fix=_FIX
            )
        found[name] = item[0], tuple(item[1])
    if not found:
        raise CheckpointError("must have the headers of the model", field=f"{path}: tensors", fix=_FIX)
    return found
