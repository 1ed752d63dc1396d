"""Write tensors as sharded safetensors with an index, one tensor's rows at a time.

Format: https://github.com/huggingface/safetensors#format.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plimsoll.api.errors import CheckpointError
from plimsoll.api.model import DTYPE_BYTES
from plimsoll.checkpoint.json_file import write_object

INDEX_NAME = "model.safetensors.index.json"
#: Yields a tensor's values, float32, in pieces of whole rows.
Pieces = Callable[[str], Iterator[npt.NDArray[np.float32]]]


@dataclass(frozen=True)
class Shard:
    """One file to be: its name and the tensors in it, in order."""

    name: str
    tensors: tuple[str, ...]


def plan_shards(shapes: Mapping[str, tuple[int, ...]], dtype: str, limit: int) -> list[Shard]:
    """Fill shards of at most `limit` bytes in the order given; a tensor above the limit has a shard to itself."""
    groups: list[list[str]] = [[]]
    used = 0
    for name, shape in shapes.items():
        nbytes = prod(shape) * DTYPE_BYTES[dtype]
        if groups[-1] and used + nbytes > limit:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += nbytes
    return [Shard(shard_name(place, len(groups)), tuple(group)) for place, group in enumerate(groups)]


def shard_name(place: int, count: int) -> str:
    """What the file at `place`, from 0 on, of so many files is called."""
    return "model.safetensors" if count == 1 else f"model-{place + 1:05}-of-{count:05}.safetensors"


def write_shards(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str,
    limit: int,
    pieces: Pieces,
    wrote: Callable[[int], None],
) -> None:
    """Write every tensor of `shapes` to `folder` in `dtype` (F32, F16 or BF16), with an index for several files.

    Args:
        wrote: called with the bytes of each piece once it is written.

    Raises:
        CheckpointError: a value does not fit the dtype.
        OSError: the disk is full or not writable.
    """
    shards = plan_shards(shapes, dtype, limit)
    for shard in shards:
        with open(folder / shard.name, "wb") as file:
            file.write(header({name: (dtype, shapes[name]) for name in shard.tensors}))
            for name in shard.tensors:
                for piece in pieces(name):
                    data = encode(piece, dtype, name)
                    file.write(data.data)
                    wrote(data.nbytes)
    if len(shards) > 1:
        total = sum(prod(shape) for shape in shapes.values()) * DTYPE_BYTES[dtype]
        write_object(folder / INDEX_NAME, index_of({shard.name: shard.tensors for shard in shards}, total))


def index_of(files: Mapping[str, Iterable[str]], total: int) -> dict[str, Any]:
    """What `INDEX_NAME` says of files by name, with the tensors in each, of `total` bytes together."""
    return {
        "metadata": {"total_size": total},
        "weight_map": {tensor: name for name, tensors in files.items() for tensor in tensors},
    }


def header(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """What a file of tensors begins with, from the dtype and the shape of each in the order of their data."""
    found: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in tensors.items():
        end = at + prod(shape) * DTYPE_BYTES[dtype]
        found[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    return header_bytes(found)


def header_bytes(content: Mapping[str, Any]) -> bytes:
    """The length of a header, and the header."""
    text = json.dumps(content, separators=(",", ":")).encode()
    # Spaces up to a multiple of eight keep the data aligned for readers that map the file.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def encode(values: npt.NDArray[np.float32], dtype: str, name: str) -> npt.NDArray[Any]:
    """`values` in `dtype`, rounded to nearest, ties to even; BF16 as its upper 16 bits in uint16.

    Raises:
        CheckpointError: a finite value becomes infinite in F16.
    """
    if dtype == "F32":
        return np.ascontiguousarray(values, dtype="<f4")
    if dtype == "F16":
        with np.errstate(over="ignore"):
            half = values.astype("<f2")
        if not np.isfinite(half[np.isfinite(values)]).all():
            raise CheckpointError(
                "holds values beyond float16's 65504", field=name, fix="Use bfloat16 or float32, which reach further"
            )
        return half
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    # Rounding up a NaN's bits could make it an infinity: keep it a quiet NaN.
    quiet = np.where(np.isnan(values), (bits >> 16) | 0x40, rounded)
    return quiet.astype("<u2")
