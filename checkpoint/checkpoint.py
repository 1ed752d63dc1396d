"""A checkpoint on disk, of any format: configuration, facts, and tensors read one at a time."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from plimsoll.api.errors import CheckpointError
from plimsoll.api.facts import facts_from_config
from plimsoll.api.layer_tensors import expected_tensors
from plimsoll.api.model import ModelFacts, TensorFact
from plimsoll.api.quantization import DTYPE_OF_BITS, Quantization, parse_quantization
from plimsoll.api.shard import Run, Shard
from plimsoll.checkpoint.quantized.linear import QuantizedLinear


@dataclass(frozen=True)
class RawTensor:
    """One tensor in memory of its own: writable, C order, `data.shape == shape`.

    `dtype` is the safetensors name of the values; BF16 and F8 come as unsigned integers of the same width, since numpy
    has no such types. Quantized weights and GGUF's blocks come dequantized, as F32.
    """

    dtype: str
    shape: tuple[int, ...]
    data: npt.NDArray[Any]


class Checkpoint(ABC):
    """An opened checkpoint: headers read and checked, no weights in memory.

    Attributes:
        path: the folder, or the GGUF file.
        format: `huggingface` or `gguf`.
        config: the configuration under Hugging Face names (built from metadata for GGUF).
        generation_config: sampling defaults and end-of-sequence ids; empty when the checkpoint has none.
        facts: what the budget and the runtime need. `facts.tensors` names tensors as Hugging Face does and gives the
            dtype and bytes *stored*: for GGUF the block type (`Q4_1`) and its packed bytes.
        notices: sentences on what is served in another way than the configuration says, or may say.
    """

    path: Path
    notices: Sequence[str] = ()
    format: Literal["huggingface", "gguf"]
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    facts: ModelFacts

    @property
    def tensors(self) -> Mapping[str, TensorFact]:
        """Headers by Hugging Face name, in file order."""
        assert self.facts.tensors is not None
        return self.facts.tensors

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @abstractmethod
    def read(
        self, name: str, rows: Run | None = None, columns: Run | None = None, within: Run | None = None
    ) -> RawTensor:
        """One tensor, or rows [start, stop) of its first dimension, or columns [start, stop) of a matrix.

        Only those bytes are read, and what lies with them in a block or a word of codes.

        Args:
            within: rows around `rows` that later calls will read too; all of them if None. A quantized linear is read
                and held so far, since most formats lie transposed.

        Raises:
            KeyError: no tensor of that name.
            CheckpointError: the file is unreadable or has become shorter.
        """

    def read_quantized(
        self, module: str, rows: Run | None = None, columns: Run | None = None, within: Run | None = None
    ) -> QuantizedLinear:
        """The weight of a quantized linear (`model.layers.0.mlp.up_proj`), or a part of it as of `read`, in its codes.

        Raises:
            KeyError: that module is stored whole; `read` gives its weight, as it gives a quantized one's in float32.
            ValueError: columns that cut a group.
            CheckpointError: as `read`, and for scales that are not finite or columns out of order.
        """
        raise KeyError(module)

    def part(self, shard: Shard | None) -> "Checkpoint":
        """The checkpoint as the rank of `shard` reads it; None is one device.

        Raises:
            SpecError: it is cut for other ranks.
        """
        return self

    @abstractmethod
    def files(self) -> Sequence[Path]:
        """The files that hold tensors."""

    def digest(self) -> str:
        """`sha256:…` of the configuration, every tensor's name, dtype, shape and bytes, and the files' names and sizes.

        Stable across machines and copies, and costs no read of the weights. It tells one checkpoint from another, a
        finished download from a cut one and a retyped configuration from the original. It is *not* a checksum of the
        weights: two fine-tunes of one shape have the same digest.
        """
        identity = {
            "format": self.format,
            "config": self.config,
            "generation_config": self.generation_config,
            "tensors": sorted((fact.name, fact.dtype, list(fact.shape), fact.nbytes) for fact in self.tensors.values()),
            "files": sorted((file.name, file.stat().st_size) for file in self.files()),
        }
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


#: Dtypes a weight may be stored in; integers and F8 need scales that this version does not read.
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")


def run_of(size: int, run: Run | None, name: str) -> Run:
    """`run` of `size` rows or columns of the tensor `name`; all of them if None.

    Raises:
        ValueError: the range leaves the tensor.
    """
    start, stop = (0, size) if run is None else run
    if not 0 <= start <= stop <= size:
        raise ValueError(f"{start}:{stop} leaves {name}, which has {size}")
    return start, stop


def token_ids(value: object) -> list[int]:
    """The ids in a configuration's `eos_token_id`: one, a list of them, or none."""
    listed = value if isinstance(value, list | tuple) else [value]
    return [index for index in listed if isinstance(index, int) and not isinstance(index, bool) and index >= 0]


def facts_of(
    config: Mapping[str, Any], generation_config: Mapping[str, Any], tensors: Mapping[str, TensorFact], where: str
) -> ModelFacts:
    """Facts of `config`, held against the headers: every tensor it asks for is there, of its shape, and no other.

    Args:
        generation_config: ids that end an answer are often only here (InternLM2.5's end of turn); they are added.
        where: the file the configuration comes from, for the error.

    Raises:
        CheckpointError: the configuration makes no sense, or does not describe these tensors.
    """
    layers = config.get("num_hidden_layers")
    # Before anything is listed per layer: a hostile count must not cost memory.
    if isinstance(layers, int | float) and layers > len(tensors):
        raise CheckpointError(
            f"counts {layers} layers, but there are only {len(tensors)} tensors",
            field=f"{where}: num_hidden_layers",
            fix="Use the configuration that came with these weights",
        )
    try:
        facts = facts_from_config(config, tensors)
    except CheckpointError as error:
        raise _placed(error, where) from None
    _check_tensors(facts, tensors, where)
    ends = dict.fromkeys([*facts.eos_token_ids, *token_ids(generation_config.get("eos_token_id"))])
    return replace(facts, eos_token_ids=tuple(ends))


def quantization_of(config: Mapping[str, Any], where: str) -> Quantization | None:
    """`parse_quantization`, its errors naming the file `where`. Raises CheckpointError."""
    try:
        return parse_quantization(config)
    except CheckpointError as error:
        raise _placed(error, where) from None


def _placed(error: CheckpointError, where: str) -> CheckpointError:
    field = f"{where}: {error.field}" if error.field else where
    return CheckpointError(error.message, field=field, value=error.value, fix=error.fix)


def _ignorable(name: str, facts: ModelFacts) -> bool:
    # Old exports carry the rotary table, and tied models sometimes the tied head: both are computed from what is read.
    # GPTQ's exporters add biases of zeros; that they are zeros is seen when they are read.
    module, _, kind = name.rpartition(".")
    weight = (facts.tensors or {}).get(f"{module}.weight")
    gptq = facts.quantization is not None and facts.quantization.format == "gptq"
    return (
        name.endswith("rotary_emb.inv_freq")
        or (facts.tie_embeddings and name in ("lm_head.weight", "output.weight"))
        or (gptq and kind == "bias" and weight is not None and weight.dtype in DTYPE_OF_BITS.values())
    )


def _check_tensors(facts: ModelFacts, tensors: Mapping[str, TensorFact], where: str) -> None:
    wanted = expected_tensors(facts)
    missing = [name for name in wanted if name not in tensors]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise CheckpointError(
            f"{facts.architecture} needs tensors that are not there: {shown}",
            field=where,
            fix="Complete the download, or use the config.json that came with these weights",
        )
    for name, shape in wanted.items():
        if tensors[name].shape != tuple(shape):
            raise CheckpointError(
                f"the configuration gives {name} the shape {list(shape)}",
                field=where,
                value=list(tensors[name].shape),
                fix="Use the config.json that came with these weights",
            )
    extra = [name for name in tensors if name not in wanted and not _ignorable(name, facts)]
    if extra:
        shown = ", ".join(name[:120] for name in extra[:3]) + (f" and {len(extra) - 3} more" if len(extra) > 3 else "")
        raise CheckpointError(
            f"{facts.architecture} with this configuration has no place for: {shown}",
            field=where,
            fix="Ignoring weights would change the answers; use the configuration they were saved with",
        )
