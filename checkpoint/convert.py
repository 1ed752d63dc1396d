"""A GGUF file as a Hugging Face folder that transformers and everything built on it loads."""

from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plimsoll.api.choice import check_choice
from plimsoll.api.errors import SpecError
from plimsoll.api.model import DTYPE_BYTES
from plimsoll.checkpoint.end_tokens import with_ends
from plimsoll.checkpoint.gguf_checkpoint import GgufCheckpoint
from plimsoll.checkpoint.json_file import write_object
from plimsoll.checkpoint.new_folder import new_folder, refuse_existing
from plimsoll.checkpoint.safetensors_writer import write_shards
from plimsoll.checkpoint.tokenizer import load_tokenizer

#: Precisions a folder can be written in, by torch's name.
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
DEFAULT_SHARD_BYTES = 5 * 1024**3
#: Values held in float32 at a time.
_PIECE = 16 * 1024 * 1024


def convert_gguf(
    path: Path,
    out: Path,
    dtype: str = "bfloat16",
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write `path` as a folder: config, generation config, tokenizer, chat template, sharded safetensors and index.

    All of it appears at `out` at once, when it is complete; a run that fails leaves nothing. Weights are dequantized,
    so float32 holds exactly what the GGUF means and the other precisions round to nearest.

    Args:
        dtype: bfloat16, float16 or float32.
        progress: called with (bytes written, bytes in all).

    Returns:
        `out`.

    Raises:
        SpecError: an unknown dtype or a shard size below one byte.
        CheckpointError: the file cannot be read, `out` exists, or the disk cannot hold it.
    """
    check_choice(dtype, DTYPES, "--dtype")
    if max_shard_bytes < 1:
        raise SpecError("must be at least one byte", field="--max-shard-size", value=max_shard_bytes)
    refuse_existing(out)
    checkpoint = GgufCheckpoint(path)
    tokenizer = load_tokenizer(checkpoint)
    stored = DTYPES[dtype]
    shapes = {name: fact.shape for name, fact in checkpoint.tensors.items()}
    total = sum(prod(shape) for shape in shapes.values()) * DTYPE_BYTES[stored]
    done = 0

    def wrote(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(done, total)

    with new_folder(out, total, f" in {dtype}") as folder:
        write_shards(folder, shapes, stored, max_shard_bytes, lambda name: _pieces(checkpoint, name), wrote)
        write_object(folder / "config.json", {**checkpoint.config, "torch_dtype": dtype})
        ends = with_ends(checkpoint.generation_config, tokenizer.eos_token_ids)
        write_object(folder / "generation_config.json", ends)
        tokenizer.save(folder)
    return out


def _pieces(checkpoint: GgufCheckpoint, name: str) -> Iterator[npt.NDArray[np.float32]]:
    shape = checkpoint.tensors[name].shape
    step = max(1, _PIECE // (prod(shape[1:]) or 1))
    for start in range(0, shape[0], step):
        yield checkpoint.read(name, (start, min(start + step, shape[0]))).data
