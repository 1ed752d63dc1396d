"""The headers of a checkpoint far away, laid out here as if all of it were.

Each file is a sparse one of its true size with nothing in it but its header (and samples of two matrices, where a model
calls its head tied and has one), so that the readers that check a
checkpoint on disk check this one, by the same rules; and the weights cost neither traffic nor disk.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plimsoll.api.config_values import flag
from plimsoll.api.errors import CheckpointError
from plimsoll.api.families.registry import all_families
from plimsoll.checkpoint.gguf_file import Cursor, read_table
from plimsoll.checkpoint.huggingface import INDEX_NAME
from plimsoll.checkpoint.json_file import MAX_JSON_BYTES, parse_object, read_object
from plimsoll.checkpoint.quantized.manifest import MANIFEST_NAME
from plimsoll.checkpoint.remote import Remote, RemoteFile
from plimsoll.checkpoint.safetensors_file import MAX_HEADER_BYTES
from plimsoll.checkpoint.sharded import SHARDS_NAME

#: Files whose content facts are read from.
WHOLE = ("config.json", "generation_config.json", INDEX_NAME, MANIFEST_NAME, SHARDS_NAME)
#: The first request of a header: a shard of a large model has 30 KiB of it, a GGUF a few MiB of vocabulary.
FIRST_SAFETENSORS = 128 * 1024
FIRST_GGUF = 4 * 1024 * 1024
#: The longest vocabularies take 30 MiB.
MAX_GGUF_HEADER = 256 * 1024 * 1024
#: Weights that may be one matrix, by every family's names.
_MATRICES = tuple(
    dict.fromkeys(
        f"{name}.weight" for family in all_families().values() for name in (family.names.embedding, family.names.head)
    )
)
#: Pieces of each that are compared from afar, from the first byte to the last.
_SAMPLES, _SAMPLE_BYTES = 8, 64 * 1024
#: A table of rotary frequencies: half a head of float32.
_MAX_TABLE = 1 << 20


@dataclass(frozen=True)
class _Twin:
    """An embedding or a head: where its bytes lie in which file."""

    file: RemoteFile
    start: int
    nbytes: int


def mirror(remote: Remote, folder: Path) -> Path:
    """Lay `remote` out in `folder`, which is empty; gives the path that `open_checkpoint` takes.

    Raises:
        CheckpointError: a file cannot be read, or a header is longer than any real one.
    """
    twins: list[_Twin] = []
    for file in remote.files:
        if file.name != Path(file.name).name and not remote.path:
            raise CheckpointError("is not a plain file name", field=remote.label, value=file.name[:200])
        target = folder / Path(file.name).name
        if file.name.endswith(".safetensors"):
            parts = _safetensors(remote, file)
            twins += _twins(file, parts[0])
        elif file.name.endswith(".gguf"):
            parts = _gguf(remote, file)
        elif file.name in WHOLE:
            if file.size > MAX_JSON_BYTES:
                raise CheckpointError(f"is larger than {MAX_JSON_BYTES} bytes", field=file.name, value=file.size)
            parts = {0: remote.read(file, 0, file.size)}
        else:
            parts = {}
        _lay_out(target, file.size, parts)
    _lay_out_samples(remote, folder, twins)
    return folder / Path(remote.path).name if remote.path else folder


def _lay_out(target: Path, size: int, parts: Mapping[int, bytes]) -> None:
    try:
        with open(target, "xb") as file:
            os.truncate(file.fileno(), size)
            for start, data in parts.items():
                file.seek(start)
                file.write(data)
    except OSError as error:
        raise CheckpointError(
            f"its headers cannot be laid out: {error.strerror}", field=str(target), fix="Free space in TMPDIR"
        ) from None


def _safetensors(remote: Remote, file: RemoteFile) -> dict[int, bytes]:
    head = remote.read(file, 0, min(file.size, FIRST_SAFETENSORS))
    length = int.from_bytes(head[:8], "little") if len(head) >= 8 else 0
    wanted = 8 + length
    # Beyond these the reader refuses the file.
    if wanted > len(head) and wanted <= file.size and length <= MAX_HEADER_BYTES:
        head += remote.read(file, len(head), wanted)
    return {0: head}


def _twins(file: RemoteFile, head: bytes) -> list[_Twin]:
    """The embedding and the head among the tensors of a safetensors file's header; none where it is damaged."""
    length = int.from_bytes(head[:8], "little")
    try:
        described = parse_object(head[8 : 8 + length], file.name)
        found = [described[name]["data_offsets"] for name in _MATRICES if name in described]
        return [_Twin(file, 8 + length + int(start), int(stop) - int(start)) for start, stop in found]
    except (CheckpointError, LookupError, TypeError, ValueError, OverflowError):
        return []  # The strict reader says so too, and in full.


def _lay_out_samples(remote: Remote, folder: Path, twins: Sequence[_Twin]) -> None:
    """Bytes of the embedding and of a head beside it: whether a tied model has a head of its own changes its budget."""
    config = folder / "config.json"
    try:
        if len(twins) != 2 or not config.is_file() or not flag(read_object(config), "tie_word_embeddings"):
            return
    except CheckpointError:
        return
    for twin in twins:
        with open(folder / twin.file.name, "r+b") as file:
            for place in range(_SAMPLES):
                first = twin.start + (twin.nbytes - _SAMPLE_BYTES) * place // (_SAMPLES - 1)
                start, stop = max(twin.start, first), min(twin.start + twin.nbytes, first + _SAMPLE_BYTES)
                if 0 < start < stop <= twin.file.size:
                    file.seek(start)
                    file.write(remote.read(twin.file, start, stop))


class _EndsError(Exception):
    """The header goes on beyond what is here."""


class _Growing(Cursor):
    """Tells a header that is not all here from one that is damaged."""

    def fail(self, message: str, value: object = None) -> CheckpointError:
        if message.startswith("ends inside"):
            raise _EndsError
        return super().fail(message, value)


def _gguf(remote: Remote, file: RemoteFile) -> dict[int, bytes]:
    head = b""
    step = FIRST_GGUF
    while True:
        head += remote.read(file, len(head), len(head) + step)
        try:
            table = _rope_table(head, file.name)
        except _EndsError:
            if len(head) >= file.size:
                return {0: head}
            if len(head) >= MAX_GGUF_HEADER:
                raise CheckpointError(
                    f"has a header above {MAX_GGUF_HEADER} bytes", field=f"{remote.label}: {file.name}"
                ) from None
            step = min(len(head), MAX_GGUF_HEADER - len(head))
            continue
        except CheckpointError:
            # The strict reader says so too, and in full.
            return {0: head}
        break
    if table is None:
        return {0: head}
    start, nbytes = table
    if nbytes > _MAX_TABLE or start + nbytes > file.size:
        return {0: head}
    return {0: head, start: remote.read(file, start, start + nbytes)}


def _rope_table(head: bytes, where: str) -> tuple[int, int] | None:
    """(start, bytes) of Llama 3's table of frequencies, the one tensor that facts are read from; None without it.

    Raises:
        _EndsError: the header goes on.
        CheckpointError: it is damaged.
    """
    rows, start, _ = read_table(_Growing(head, where), {})
    tables = ((start + offset, 4 * shape[-1]) for name, _, shape, offset in rows if name == "rope_freqs.weight")
    return next(tables, None)
