"""Open the checkpoint at a path, of any format."""

from pathlib import Path

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.checkpoint import Checkpoint
from plimsoll.checkpoint.gguf_split import whole_files
from plimsoll.checkpoint.huggingface import HuggingFaceCheckpoint
from plimsoll.checkpoint.plain_files import check_plain_files
from plimsoll.checkpoint.quantized.manifest import refuse_failed_gate
from plimsoll.checkpoint.sharded import SHARDS_NAME, ShardedCheckpoint


def open_checkpoint(path: Path | str, *, to_measure: bool = False) -> Checkpoint:
    """A Hugging Face folder, a GGUF file or any part of a split one, or a folder whose only weights are one such file.

    Headers are read and checked; no memory is taken for weights.

    Args:
        to_measure: open also what failed the gate of its quantization: to be looked at, never served.

    Raises:
        CheckpointError: nothing there, not a whole, coherent checkpoint of a served architecture, or one that failed
            the gate of its quantization.
    """
    path = Path(path)
    try:
        if path.is_file():
            return _open_gguf(path)
        if not path.is_dir():
            raise CheckpointError("there is no such file or folder", field=str(path), fix="Check the path")
        check_plain_files(path)
        ggufs = whole_files(file.name for file in path.glob("*.gguf"))
        if ggufs and not any(path.glob("*.safetensors")):
            if len(ggufs) > 1:
                raise CheckpointError(
                    f"holds {len(ggufs)} GGUF files", field=str(path), value=list(ggufs)[:5],
                    fix="Name the one to load",
                )  # fmt: skip
            (parts,) = ggufs.values()
            return _open_gguf(path / parts[0])
        if not to_measure:
            refuse_failed_gate(path)
        return ShardedCheckpoint(path) if (path / SHARDS_NAME).is_file() else HuggingFaceCheckpoint(path)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror or error}", field=str(path)) from None


def _open_gguf(path: Path) -> Checkpoint:
    if path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt"):
        raise CheckpointError(
            "is weights alone, without a configuration", field=str(path), fix="Point at the folder, not the file"
        )
    # The gguf package takes a fifth of a second to import: only those who need it pay.
    from plimsoll.checkpoint.gguf_checkpoint import GgufCheckpoint

    return GgufCheckpoint(path)
