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

INDEX_NAME = "model.safetensors.index.json"


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
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, entry in entries.items():
        header[name] = {
            "dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [at, at := at + entry.nbytes],
        }  # fmt: skip
    text = header_bytes(header)
    digest = hashlib.sha256()
    with replacing(path, path.with_name(f".{path.name}.partial")) as file:
        for data in _stream(text, entries):
            digest.update(data)
            file.write(data)
        size = file.tell()
        assert size == len(text) + at, f"{path.name}: {size} bytes"
    return Shard(path.name, size, digest.hexdigest(), {name: entry.nbytes for name, entry in entries.items()})


def header_bytes(header: Mapping[str, Any]) -> bytes:
    """What a file of tensors begins with: the length of the header, and the header."""
    text = json.dumps(header, separators=(",", ":")).encode()
    # Spaces up to a multiple of eight keep the data aligned for readers that map the file.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


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


def index_of(shards: list[Shard]) -> dict[str, Any]:
    """What `model.safetensors.index.json` says of them."""
    return {
        "metadata": {"total_size": sum(sum(shard.tensors.values()) for shard in shards)},
        "weight_map": {name: shard.name for shard in shards for name in shard.tensors},
    }
