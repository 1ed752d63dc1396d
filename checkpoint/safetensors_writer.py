"""Write tensors as sharded safetensors with an index, one tensor's rows at a time.

Format: https://github.com/huggingface/safetensors#format.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plimsoll.api.errors import CheckpointError
from plimsoll.api.model import DTYPE_BYTES

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
    if len(groups) == 1:
        return [Shard("model.safetensors", tuple(groups[0]))]
    return [
        Shard(f"model-{index:05}-of-{len(groups):05}.safetensors", tuple(group))
        for index, group in enumerate(groups, start=1)
    ]


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
            file.write(_header({name: shapes[name] for name in shard.tensors}, dtype))
            for name in shard.tensors:
                for piece in pieces(name):
                    data = encode(piece, dtype, name)
                    file.write(data.data)
                    wrote(data.nbytes)
    if len(shards) > 1:
        total = sum(prod(shape) for shape in shapes.values()) * DTYPE_BYTES[dtype]
        index: dict[str, Any] = {
            "metadata": {"total_size": total},
            "weight_map": {name: shard.name for shard in shards for name in shard.tensors},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _header(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + prod(shape) * DTYPE_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
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
