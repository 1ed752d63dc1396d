"""One safetensors file at a time, whole or not there: written aside, on the disk, then renamed.

Format: https://github.com/huggingface/safetensors#format. Bytes follow from the tensors alone: no time, no order of a
hash, nothing of the machine.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy.typing as npt

from plimsoll.api.model import DTYPE_BYTES
from plimsoll.checkpoint.checkpoint import RawTensor
from plimsoll.checkpoint.complete import replacing
from plimsoll.checkpoint.safetensors_writer import header


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: `pieces` gives its elements in order, in runs of the stored type."""

    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[npt.NDArray[Any]]]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Shard:
    """A file that was written: its plain name, bytes, SHA-256 in hex, and the tensors in it with their bytes."""

    name: str
    bytes: int
    sha256: str
    tensors: Mapping[str, int]


def whole(raw: RawTensor) -> Entry:
    """A tensor that is in memory."""
    return Entry(raw.dtype, raw.shape, lambda: iter((raw.data,)))


def write_shard(path: Path, entries: Mapping[str, Entry]) -> Shard:
    """Raises OSError; nothing stands under `path` then."""
    head = header({name: (entry.dtype, entry.shape) for name, entry in entries.items()})
    digest = hashlib.sha256()
    with replacing(path, path.with_name(f".{path.name}.partial")) as file:
        for data in _stream(head, entries):
            digest.update(data)
            file.write(data)
        size = file.tell()
        assert size == len(head) + sum(entry.nbytes for entry in entries.values()), f"{path.name}: {size} bytes"
    return Shard(path.name, size, digest.hexdigest(), {name: entry.nbytes for name, entry in entries.items()})


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """(the header of a file that `write_shard` wrote, where its data begins). Raises OSError."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def _stream(header: bytes, entries: Mapping[str, Entry]) -> Iterator[bytes | memoryview]:
    yield header
    for entry in entries.values():
        for piece in entry.pieces():
            yield piece.reshape(-1).view("u1").data if piece.size else b""
