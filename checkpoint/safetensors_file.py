"""One safetensors file: its header, strictly checked, and reads of single tensors.

Format: https://github.com/huggingface/safetensors#format. Eight bytes of little-endian header length, a JSON object
from tensor name to dtype, shape and byte range, then the data, without holes.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.json_file import parse_object

#: numpy's type for each safetensors dtype. Types numpy lacks are carried as unsigned integers of the same width.
STORAGE: Mapping[str, str] = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "u1", "F8_E4M3": "u1", "F8_E5M2": "u1",
}  # fmt: skip

#: The reference implementation allows 100 MB; no published shard comes near this.
MAX_HEADER_BYTES = 32 * 1024 * 1024
MAX_RANK = 8
#: Linux reads no more by one call than a little less than 2 GiB.
_MOST_AT_ONCE = 1 << 30
_PAGE_BYTES = 4096


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: `start` and `nbytes` in bytes of the file itself."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


def read_range(path: Path, start: int, nbytes: int) -> npt.NDArray[np.uint8]:
    """`nbytes` bytes from offset `start`, in memory of their own.

    Read rather than mapped: a file cut short under our feet is then an error and not a bus error, and mapped pages
    do not blur what the process holds.

    Raises:
        CheckpointError: the file is unreadable or shorter than it was.
    """
    return read_segments(path, start, nbytes, nbytes, 1).reshape(-1)


def read_segments(path: Path, start: int, nbytes: int, step: int, count: int) -> npt.NDArray[np.uint8]:
    """[count, nbytes]: `nbytes` bytes from each of the offsets `start`, `start + step` and so on, and no others.

    Raises:
        CheckpointError: as `read_range`.
    """
    data = np.empty((count, nbytes), dtype=np.uint8)
    if nbytes == step:
        nbytes, step, count = nbytes * count, 0, min(count, 1)
    view = data.reshape(-1).data
    try:
        with open(path, "rb", buffering=0) as file:
            descriptor = file.fileno()
            if step - nbytes >= _PAGE_BYTES and hasattr(os, "posix_fadvise"):
                # One after another, segments far apart would each wait for the disk.
                for index in range(count if nbytes else 0):
                    os.posix_fadvise(descriptor, start + index * step, nbytes, os.POSIX_FADV_WILLNEED)
            for index in range(count if nbytes else 0):
                done, first = index * nbytes, start + index * step
                end, offset = done + nbytes, first - done
                while done < end:
                    got = os.preadv(descriptor, [view[done : min(end, done + _MOST_AT_ONCE)]], offset + done)
                    if got == 0:
                        raise CheckpointError(
                            f"ends at byte {offset + done} of the {first + nbytes} its header promised",
                            field=str(path),
                            fix="The file changed while it was read; download it again",
                        )
                    done += got
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", field=str(path)) from None
    return data


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _stored_tensor(name: str, entry: Any, where: str, data_start: int) -> StoredTensor:
    field = f"{where}: tensor {name[:200]!r}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError("needs exactly dtype, shape and data_offsets", field=field)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in STORAGE:
        raise CheckpointError(
            "has an unknown dtype", field=field, value=str(dtype)[:40], fix=f"Known: {' '.join(STORAGE)}"
        )
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(_is_count(size) for size in shape):
        raise CheckpointError("needs a shape of non-negative whole numbers", field=field, value=str(shape)[:80])
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise CheckpointError("needs data_offsets [begin, end]", field=field, value=str(offsets)[:80])
    begin, end = offsets
    nbytes = prod(shape) * np.dtype(STORAGE[dtype]).itemsize
    if end - begin != nbytes:
        raise CheckpointError(
            f"{dtype} of shape {shape} takes {nbytes} bytes, its offsets hold {end - begin}",
            field=field,
            fix="Download the file again",
        )
    return StoredTensor(name, dtype, tuple(shape), data_start + begin, nbytes)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of the file by name. Reads the header alone, never the data.

    Raises:
        CheckpointError: truncated, oversized or malformed header; unknown dtype; byte ranges that overlap, leave holes,
            leave the file, or do not match dtype times shape.
    """
    where = str(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", field=where) from None
    if size < 8:
        raise CheckpointError(
            f"holds {size} bytes, too few for a safetensors header", field=where, fix="Download it again"
        )
    header_bytes = int.from_bytes(read_range(path, 0, 8).tobytes(), "little")
    if header_bytes > size - 8:
        raise CheckpointError(
            f"says its header takes {header_bytes} bytes, but the file holds {size}",
            field=where,
            fix="It is truncated or not safetensors; download it again",
        )
    if header_bytes > MAX_HEADER_BYTES:
        raise CheckpointError(f"has a header above {MAX_HEADER_BYTES} bytes", field=where, value=header_bytes)
    header = parse_object(read_range(path, 8, header_bytes).tobytes(), f"{where} (header)")
    header.pop("__metadata__", None)
    data_start = 8 + header_bytes
    tensors = {name: _stored_tensor(name, entry, where, data_start) for name, entry in header.items()}

    expected = data_start
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.nbytes)):
        if tensor.start != expected:
            raise CheckpointError(
                f"tensor {tensor.name[:200]!r} begins at byte {tensor.start}, the one before it ends at {expected}",
                field=where,
                fix="The header is damaged; download the file again",
            )
        expected += tensor.nbytes
    if expected != size:
        raise CheckpointError(
            f"the header describes {expected} bytes, the file holds {size}",
            field=where,
            fix="The file is truncated or has grown; download it again",
        )
    return tensors
