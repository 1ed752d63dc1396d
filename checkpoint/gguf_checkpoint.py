"""A GGUF file, whole or in parts, as a checkpoint under Hugging Face names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from plimsoll.api.errors import CheckpointError
from plimsoll.api.model import TensorFact
from plimsoll.checkpoint.checkpoint import Checkpoint, RawTensor, facts_of, row_range
from plimsoll.checkpoint.gguf_config import build_config, build_generation_config, family_of
from plimsoll.checkpoint.gguf_file import GgufFile, GgufTensor
from plimsoll.checkpoint.gguf_names import huggingface_name
from plimsoll.checkpoint.safetensors_file import read_range


class GgufCheckpoint(Checkpoint):
    """See `Checkpoint`. `read` dequantizes to float32; the facts' tensors give the block type and packed bytes."""

    format: Literal["huggingface", "gguf"] = "gguf"

    def __init__(self, path: Path) -> None:
        """Read metadata and tensor table; take no memory for weights or vocabulary.

        Raises:
            CheckpointError: anything damaged, missing, mismatched or not supported, by file and key.
        """
        self.file = GgufFile(path)
        self.path = path = self.file.path
        self._family, self._written = family_of(self.file)
        self.config = build_config(self.file)
        self.generation_config = build_generation_config(self.file)
        self._stored: dict[str, GgufTensor] = {}
        for tensor in self.file.tensors.values():
            name = huggingface_name(tensor.name, self._family, self._written, str(path))
            if name is not None:
                self._stored[name] = tensor
        tensors = {
            name: TensorFact(name, tensor.shape, tensor.type_name, tensor.nbytes)
            for name, tensor in self._stored.items()
        }
        self.facts = facts_of(self.config, self.generation_config, tensors, str(path))

    def files(self) -> Sequence[Path]:
        return self.file.parts

    def read(self, name: str, rows: tuple[int, int] | None = None) -> RawTensor:
        tensor = self._stored[name]
        start, stop, _ = row_range(tensor.shape, rows, name)
        if len(tensor.shape) == 1:
            # One row of blocks: a slice of it need not fall on a block.
            values = _dequantize(self._packed(tensor, 0, 1), tensor)[0]
            order = self._stored_order(name, tensor.shape[0])
            values = (values if order is None else values[order])[start:stop]
            if self._written.norm_offset and name.endswith("norm.weight"):
                values = values - np.float32(self._written.norm_offset)
        elif (order := self._stored_order(name, tensor.shape[0])) is not None:
            wanted = order[start:stop]
            first, last = (int(wanted.min()), int(wanted.max()) + 1) if len(wanted) else (0, 0)
            values = _dequantize(self._packed(tensor, first, last)[wanted - first], tensor)
        else:
            values = _dequantize(self._packed(tensor, start, stop), tensor)
        shape = (stop - start, *tensor.shape[1:])
        return RawTensor("F32", shape, np.ascontiguousarray(values, dtype=np.float32).reshape(shape))

    def _packed(self, tensor: GgufTensor, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Rows [start, stop) as stored, [rows, bytes per row]."""
        count = tensor.shape[0] if len(tensor.shape) > 1 else 1
        row_bytes = tensor.nbytes // count
        return read_range(tensor.path, tensor.start + start * row_bytes, (stop - start) * row_bytes).reshape(
            -1, row_bytes
        )

    def _stored_order(self, name: str, rows: int) -> npt.NDArray[np.intp] | None:
        """Which stored row holds each Hugging Face row, where llama.cpp reorders them.

        In a head of size d, Hugging Face rotates row i with row i + d/2; llama.cpp stores such pairs side by side.
        """
        if not self._written.permuted:
            return None
        module, names = name.rpartition(".")[0], self._family.names
        counts = {"q": self.facts.num_heads, "k": self.facts.num_kv_heads}
        heads = next((count for role, count in counts.items() if module.endswith(f".{names.module(role)}")), None)
        if heads is None:
            return None
        stored: npt.NDArray[np.intp] = np.arange(rows).reshape(heads, -1, 2)
        return stored.swapaxes(1, 2).reshape(-1)


def _dequantize(packed: npt.NDArray[np.uint8], tensor: GgufTensor) -> npt.NDArray[Any]:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    if packed.shape[0] == 0:
        return np.empty((0, tensor.shape[-1]), dtype=np.float32)
    try:
        # Scales in a damaged block may be infinite or NaN: that shows in the weights, not as a warning.
        with np.errstate(all="ignore"):
            return np.asarray(dequantize(packed, GGMLQuantizationType(tensor.kind)), dtype=np.float32)
    except (ValueError, NotImplementedError) as error:
        raise CheckpointError(f"cannot be dequantized: {error}", field=tensor.name, value=tensor.type_name) from None
