"""A GGUF file, whole or in parts, as a checkpoint under Hugging Face names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from plimsoll.api.blocks import BLOCKS
from plimsoll.api.errors import CheckpointError
from plimsoll.api.model import TensorFact
from plimsoll.api.shard import Run
from plimsoll.checkpoint.checkpoint import Checkpoint, RawTensor, facts_of, run_of
from plimsoll.checkpoint.gguf_blocks import unpack
from plimsoll.checkpoint.gguf_config import build_config, build_generation_config, family_of
from plimsoll.checkpoint.gguf_file import GgufFile, GgufTensor
from plimsoll.checkpoint.gguf_names import huggingface_name
from plimsoll.checkpoint.quantized.linear import QuantizedLinear
from plimsoll.checkpoint.safetensors_file import read_segments


class GgufCheckpoint(Checkpoint):
    """See `Checkpoint`. `read` dequantizes to float32, `read_quantized` gives the codes of blocks that kernels multiply
    as they are; the facts' tensors give the block type and packed bytes."""

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

    def read(
        self, name: str, rows: Run | None = None, columns: Run | None = None, within: Run | None = None
    ) -> RawTensor:
        tensor = self._stored[name]
        start, stop = run_of(tensor.shape[0], rows, name)
        order = self._stored_order(name, tensor.shape[0])
        if len(tensor.shape) == 1:
            # One row of blocks: a slice of it need not fall on a block.
            values = _dequantize(self._packed(tensor, 0, 1, None), tensor)[0]
            values = (values if order is None else values[order])[start:stop]
            if self._written.norm_offset and name.endswith("norm.weight"):
                values = values - np.float32(self._written.norm_offset)
            return RawTensor("F32", (stop - start,), np.ascontiguousarray(values, dtype=np.float32))
        first, last = run_of(tensor.shape[1], columns, name)
        block, _ = tensor.block
        blocks = first // block, -(-last // block)
        packed = self._rows(name, (start, stop), blocks)
        values = _dequantize(packed, tensor)[:, first - blocks[0] * block : last - blocks[0] * block]
        return RawTensor("F32", (stop - start, last - first), np.ascontiguousarray(values, dtype=np.float32))

    def read_quantized(
        self, module: str, rows: Run | None = None, columns: Run | None = None, within: Run | None = None
    ) -> QuantizedLinear:
        name = f"{module}.weight"
        tensor = self._stored.get(name)
        if tensor is None or tensor.type_name not in BLOCKS:
            raise KeyError(module)
        run, (first, last) = run_of(tensor.shape[0], rows, name), run_of(tensor.shape[1], columns, name)
        block = tensor.block[0]
        if first % block or last % block:
            raise ValueError(f"columns {first} to {last} of {name} cut a block of {block}")
        packed = self._rows(name, run, (first // block, last // block))
        return unpack(packed, tensor.type_name, f"{self.path}: {tensor.name}")

    def _rows(self, name: str, rows: Run, blocks: Run) -> npt.NDArray[np.uint8]:
        """A run of blocks of rows as Hugging Face orders them: [rows, bytes]."""
        tensor = self._stored[name]
        order = self._stored_order(name, tensor.shape[0])
        if order is None:
            return self._packed(tensor, *rows, blocks)
        return self._ordered(tensor, order[slice(*rows)], blocks)

    def _packed(self, tensor: GgufTensor, start: int, stop: int, blocks: Run | None) -> npt.NDArray[np.uint8]:
        """Rows [start, stop) as stored, or the run `blocks` of each: [rows, bytes]."""
        row_bytes = tensor.nbytes // (tensor.shape[0] if len(tensor.shape) > 1 else 1)
        first, last = (0, row_bytes) if blocks is None else (block * tensor.block[1] for block in blocks)
        return read_segments(
            tensor.path, tensor.start + start * row_bytes + first, last - first, row_bytes, stop - start
        )

    def _ordered(self, tensor: GgufTensor, order: npt.NDArray[np.intp], blocks: Run) -> npt.NDArray[np.uint8]:
        """The rows of `order` as stored, each read once, neighbours together."""
        found = np.empty((len(order), (blocks[1] - blocks[0]) * tensor.block[1]), dtype=np.uint8)
        by_place = np.argsort(order)
        for run in np.split(by_place, np.flatnonzero(np.diff(order[by_place]) != 1) + 1):
            if len(run):
                found[run] = self._packed(tensor, int(order[run[0]]), int(order[run[-1]]) + 1, blocks)
        return found

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

    if packed.size == 0:
        elements, nbytes = tensor.block
        return np.empty((len(packed), packed.shape[1] // nbytes * elements), dtype=np.float32)
    try:
        # Scales in a damaged block may be infinite or NaN: that shows in the weights, not as a warning.
        with np.errstate(all="ignore"):
            return np.asarray(dequantize(packed, GGMLQuantizationType(tensor.kind)), dtype=np.float32)
    except (ValueError, NotImplementedError) as error:
        raise CheckpointError(f"cannot be dequantized: {error}", field=tensor.name, value=tensor.type_name) from None
