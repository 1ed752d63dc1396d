"""A fingerprint of the files of a checkpoint, by which a pod refuses what was not inspected.

Two checkpoints of one shape have the same headers, and a claim's files can be replaced while a revision serves. So the
fingerprint covers name, size and time of change of each file, its headers, and samples of its bytes. Times count in
whole seconds, since some network filesystems keep no more; the samples tell files apart that differ within one.

The fingerprint outlives versions: a record that one version wrote is compared by pods of a later one. A change of what
is covered takes a new `LAYOUT`; a fingerprint of another layout is not compared.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from plimsoll.api.errors import CheckpointError, SourceChangedError
from plimsoll.checkpoint.gguf_split import part_names

#: Where a cluster's pods find the fingerprint that the files must have.
ENVIRONMENT = "PLIMSOLL_CHECKPOINT_CONTENTS"
LAYOUT = "1"
_SUFFIXES = frozenset({".safetensors", ".gguf", ".json", ".jinja", ".model"})
_NAMES = frozenset({"merges.txt", "vocab.txt"})
_MIB = 1 << 20
#: Files up to this size are read whole.
_SMALL = 4 * _MIB
#: Bytes of the front of a large file: GGUF keeps its vocabulary there; a safetensors file says how long its header is.
_FRONT, _MOST_FRONT = 4 * _MIB, 64 * _MIB
_SAMPLES, _SAMPLE = 32, 16 << 10


def contents_of(path: Path) -> str:
    """`1:` and 32 hexadecimal digits for the checkpoint at `path`, a folder or a GGUF file; megabytes are read.

    Raises:
        CheckpointError: a file cannot be read.
    """
    try:
        found = [_described(file) for file in sorted(_files(path), key=lambda file: file.name)]
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror or error}", field=str(path)) from None
    return f"{LAYOUT}:{hashlib.sha256(json.dumps(found).encode()).hexdigest()[:32]}"


def refuse_changed(path: Path, expected: str | None) -> None:
    """Returns where the checkpoint at `path` has the fingerprint `expected`, or none is expected.

    Raises:
        SourceChangedError: it has another one.
        CheckpointError: a file cannot be read.
    """
    if not expected or expected.partition(":")[0] != LAYOUT:
        return
    found = contents_of(path)
    if found != expected:
        raise SourceChangedError(
            f"the files were replaced since they were inspected: their sizes, times or bytes made {expected}",
            field=str(path), value=found,
            fix="Put the old files back, or give spec.model.contentVersion a new value to serve what is there now",
        )  # fmt: skip


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield from (part for name in part_names(path.name) if (part := path.parent / name).is_file())
        return
    for file in path.iterdir():
        if (file.suffix in _SUFFIXES or file.name in _NAMES) and not file.name.startswith(".") and file.is_file():
            yield file


def _described(file: Path) -> tuple[str, int, int, str]:
    status = file.stat()
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        size = status.st_size
        front = size if size <= _SMALL else _front(file, opened.read(8))
        opened.seek(0)
        while front > 0 and (piece := opened.read(min(_MIB, front))):
            digest.update(piece)
            front -= len(piece)
        if size > _SMALL:
            for number in range(_SAMPLES):
                opened.seek((size - _SAMPLE) * number // (_SAMPLES - 1))
                digest.update(opened.read(_SAMPLE))
    return file.name, size, int(status.st_mtime), digest.hexdigest()


def _front(file: Path, head: bytes) -> int:
    header = int.from_bytes(head, "little") + 8 if file.suffix == ".safetensors" else 0
    return min(_MOST_FRONT, max(_FRONT, header))
