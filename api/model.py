"""Facts of a model, known from its configuration and tensor headers alone.

Field names follow Hugging Face `config.json`. Everything here is plain data: the checkpoint reader makes it,
the budget sizes it, the runtime builds modules from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from plimsoll.api.quantization import Quantization

RopeKind = Literal["default", "linear", "dynamic", "yarn", "llama3"]

#: Bytes of one element, by the dtype names of the safetensors format.
DTYPE_BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True)
class TensorFact:
    """One tensor as stored: `shape` in elements, `dtype` by safetensors name (`BF16`), `nbytes` on disk."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True)
class RopeFacts:
    """Rotary embedding: base `theta`, and how positions beyond the trained length are scaled.

    `params` holds what the kind needs under its Hugging Face names (`factor`, `original_max_position_embeddings`,
    `beta_fast`, `beta_slow`, `attention_factor`, `mscale`, `low_freq_factor`, `high_freq_factor`).
    """

    theta: float = 10000.0
    kind: RopeKind = "default"
    params: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelFacts:
    """A decoder-only transformer, as far as memory and arithmetic depend on it."""

    architecture: str
    """Hugging Face class name, e.g. `LlamaForCausalLM`."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    """Positions the model was trained for (`max_position_embeddings`)."""
    rms_norm_eps: float
    rope: RopeFacts
    tie_embeddings: bool
    sliding_window: int | None = None
    """Tokens each position attends to, itself included; None where attention is full."""
    sliding_layers: tuple[bool, ...] | None = None
    """Per layer, whether `sliding_window` applies; None means on every layer (if it is set)."""
    qkv_bias: bool = False
    output_bias: bool = False
    """Bias on the attention output projection."""
    mlp_bias: bool = False
    qk_norm: bool = False
    """RMS norm on each head of q and k before rotation (Qwen3)."""
    dtype: str = "BF16"
    """Precision the checkpoint was trained in, by safetensors name."""
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    tensors: Mapping[str, TensorFact] | None = None
    """Headers by Hugging Face tensor name; None when only a configuration is at hand."""
    quantization: Quantization | None = None
    """How linear weights are stored; None where they are floats, or blocks of a GGUF."""
    config: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The configuration these facts were read from, for what has no field here."""
