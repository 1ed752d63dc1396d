"""Cut a checkpoint for the ranks of a tensor-parallel group."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from plimsoll.api.errors import CheckpointError, SpecError
from plimsoll.api.precision import Precision
from plimsoll.api.quantization import PRECISION_OF_BITS
from plimsoll.api.shard import Shard, shards
from plimsoll.checkpoint.complete import write_durably
from plimsoll.checkpoint.huggingface import INDEX_NAME, HuggingFaceCheckpoint
from plimsoll.checkpoint.json_file import write_object
from plimsoll.checkpoint.new_folder import new_folder, refuse_existing
from plimsoll.checkpoint.open import open_checkpoint
from plimsoll.checkpoint.plain_files import READ, TEMPLATES
from plimsoll.checkpoint.quantized.manifest import MANIFEST_NAME
from plimsoll.checkpoint.safetensors_file import STORAGE, read_segments
from plimsoll.checkpoint.safetensors_writer import header_bytes
from plimsoll.checkpoint.sharded import SHARDS_NAME, ShardedCheckpoint, description, rank_file

#: Bytes of a tensor that are copied at once.
_MOST = 64 << 20


def shard_checkpoint(
    path: Path,
    tensor: int,
    out: Path,
    precision: Precision | None = None,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write what each rank of a group of `tensor` reads of the checkpoint at `path` into a file of its own.

    All of it appears at `out` at once, when it is complete; a run that fails leaves nothing. Values are copied as they
    are stored.

    Args:
        precision: in which it will be served: groups of codes are never cut. If None that of its codes, else bfloat16.
        progress: called with (bytes written, bytes in all).

    Returns:
        `out`.

    Raises:
        SpecError: the model does not split so.
        CheckpointError: the checkpoint cannot be read or cut, `out` exists, or the disk cannot hold it.
    """
    refuse_existing(out)
    checkpoint = open_checkpoint(path)
    if not isinstance(checkpoint, HuggingFaceCheckpoint):
        raise CheckpointError(
            "is a GGUF file, whose blocks a rank reads as they lie", field=str(path),
            fix="Serve it as it is, or make a folder of it with `plimsoll convert` first",
        )  # fmt: skip
    if isinstance(checkpoint, ShardedCheckpoint):
        raise CheckpointError("is cut already", field=str(path), fix="Cut the checkpoint that it was cut from")
    if tensor < 2:
        raise SpecError(
            "must be 2 or more", field="--tensor", value=tensor, fix="One device reads the whole checkpoint"
        )
    said = checkpoint.facts.quantization
    chosen = precision or ("bfloat16" if said is None else PRECISION_OF_BITS[said.bits])
    parts = shards(checkpoint.facts, tensor, chosen)
    content = description(checkpoint, parts, chosen)
    sizes = [_bytes(checkpoint, part) for part in parts]
    total, done = sum(sizes), 0

    def wrote(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(done, total)

    with new_folder(out, total) as folder:
        for part in parts:
            _write(checkpoint, part, folder / rank_file(part.rank, tensor), wrote)
        _copy(checkpoint.path, folder)
        # With the head called its own where it is.
        write_object(folder / "config.json", checkpoint.config)
        content["bytes"] = [(folder / rank_file(part.rank, tensor)).stat().st_size for part in parts]
        write_durably(folder / SHARDS_NAME, content)
    return out


def _copy(source: Path, target: Path) -> None:
    """Everything that is read of a checkpoint but its weights."""
    for file in sorted(source.iterdir()):
        weights = file.suffix == ".safetensors" or file.name in (INDEX_NAME, MANIFEST_NAME)
        if file.suffix in READ and file.is_file() and not file.name.startswith(".") and not weights:
            shutil.copyfile(file, target / file.name)
    if (source / TEMPLATES).is_dir():
        shutil.copytree(source / TEMPLATES, target / TEMPLATES)


def _bytes(checkpoint: HuggingFaceCheckpoint, shard: Shard) -> int:
    cuts = checkpoint.stored_cuts(shard).values()
    return sum(
        (rows[1] - rows[0]) * (columns[1] - columns[0]) * np.dtype(STORAGE[stored.dtype]).itemsize
        for stored, rows, columns in cuts
    )


def _write(checkpoint: HuggingFaceCheckpoint, shard: Shard, target: Path, wrote: Callable[[int], None]) -> None:
    """The file of one rank, its tensors in the order in which the rank reads them."""
    cuts, header, at = checkpoint.stored_cuts(shard), {}, 0
    for key, (stored, rows, columns) in cuts.items():
        shape = (rows[1] - rows[0], columns[1] - columns[0])
        end = at + shape[0] * shape[1] * np.dtype(STORAGE[stored.dtype]).itemsize
        header[key], at = {"dtype": stored.dtype, "shape": shape, "data_offsets": [at, end]}, end
    with open(target, "xb") as file:
        file.write(header_bytes(header))
        for stored, rows, columns in cuts.values():
            size = np.dtype(STORAGE[stored.dtype]).itemsize
            width = (columns[1] - columns[0]) * size
            step = max(1, _MOST // max(1, width))
            for start in range(*rows, step):
                stop = min(start + step, rows[1])
                source, offset, stride = checkpoint.place(stored.name, (start, stop), columns, size)
                file.write(read_segments(source, offset, width, stride, stop - start).data)
                wrote(width * (stop - start))
        file.flush()
        os.fsync(file.fileno())
