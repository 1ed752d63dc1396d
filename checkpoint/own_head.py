"""Whether a model that calls its head tied to its embedding has other weights there, and so a head of its own."""

from functools import lru_cache
from pathlib import Path

from plimsoll.checkpoint.safetensors_file import StoredTensor, read_range

#: Bytes compared at once; a head of its own differs in the first of them.
_PIECE = 4 * 1024 * 1024
_Place = tuple[Path, int, int]
"""A file, the nanosecond it was written, and the first byte of a tensor in it."""


def has_own_head(embedding: tuple[Path, StoredTensor], head: tuple[Path, StoredTensor]) -> bool:
    """Whether `head` is another matrix than `embedding`. Reads both, up to the first difference.

    Raises:
        CheckpointError: a file is unreadable or has become shorter.
    """
    (first, ours), (second, theirs) = embedding, head
    if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
        return True
    return _differ(_place(first, ours), _place(second, theirs), ours.nbytes)


def _place(file: Path, tensor: StoredTensor) -> _Place:
    return file, file.stat().st_mtime_ns, tensor.start


# A server opens its checkpoint more than once.
@lru_cache(maxsize=16)
def _differ(first: _Place, second: _Place, nbytes: int) -> bool:
    for done in range(0, nbytes, _PIECE):
        count = min(_PIECE, nbytes - done)
        ours, theirs = (read_range(file, start + done, count) for file, _, start in (first, second))
        if ours.tobytes() != theirs.tobytes():
            return True
    return False
