"""Facts of a model, known from its configuration and tensor headers alone.

Field names follow Hugging Face `config.json`. Everything here is plain data: the checkpoint reader makes it,
the budget sizes it, the runtime builds modules from it.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from plimsoll.api.quantization import Quantization

Activation = Literal["silu", "gelu", "gelu_tanh", "relu2"]
"""`gelu` is exact, `gelu_tanh` its approximation (Hendrycks & Gimpel 2016); `relu2` is max(x, 0)²."""
RopeKind = Literal["default", "linear", "dynamic", "yarn", "llama3", "longrope"]

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
    share: float = 1.0
    """Of each head's dimensions, from the first on, that are rotated."""

    long_factors: tuple[float, ...] = ()
    """`longrope`: divides each frequency where sequences may exceed the original length."""
    short_factors: tuple[float, ...] = ()
    """The same where they may not."""

    def rotated(self, head_dim: int) -> int:
        """Dimensions of a head that are rotated."""
        return int(head_dim * self.share)


@dataclass(frozen=True)
class NormSpec:
    """How activations are normalized."""

    eps: float
    kind: Literal["rms", "layer"] = "rms"
    """`rms`: x / sqrt(mean(x²) + eps) * weight (Zhang & Sennrich 2019). `layer`: the mean is subtracted first."""
    offset: float = 0.0
    """Added to the stored weight before it multiplies: 1 where a checkpoint stores w for x * (1 + w)."""
    bias: bool = False
    """A vector is added at the end. Only of kind `layer`."""


@dataclass(frozen=True)
class LayerSpec:
    """The arithmetic of one decoder layer, without its sizes: what the engine, the budget and `quantjob` go by."""

    norm: NormSpec
    """Every norm of the layer."""
    scale: float
    """Multiplies q · k."""
    rope: RopeFacts | None
    """None where positions do not enter."""
    placement: Literal["before", "around", "after"] = "before"
    """Where norms stand: before attention and before the MLP, before and after each, or after each."""
    qk_norm: Literal["head", "whole"] | None = None
    """A norm of q and k before rotation: of each head, or of the whole projection."""
    attention_softcap: float | None = None
    """Scores s become cap * tanh(s / cap)."""
    window: int | None = None
    """Tokens each position attends to, itself included; None where attention is full."""
    qkv_bias: bool = False
    output_bias: bool = False
    """Bias on the attention output projection."""
    mlp_bias: bool = False
    activation: Activation = "silu"
    gated: bool = True
    """The MLP is down(act(gate(x)) * up(x)); else down(act(up(x)))."""
    block: Literal["mlp"] = "mlp"
    """What follows attention. Mixtures of experts will be another kind."""
    residual_multiplier: float = 1.0
    """Multiplies what attention and MLP add to the residual."""


@dataclass(frozen=True)
class ModelFacts:
    """A decoder-only transformer, as far as memory and arithmetic depend on it."""

    architecture: str
    """Hugging Face class name, e.g. `LlamaForCausalLM`."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    """Positions the model was trained for (`max_position_embeddings`)."""
    rope: RopeFacts
    """The one that the trained length belongs to. A layer may have another."""
    tie_embeddings: bool
    layers: tuple[LayerSpec, ...]
    final_norm: NormSpec
    embedding_multiplier: float = 1.0
    logit_multiplier: float = 1.0
    logit_softcap: float | None = None
    """Logits x become cap * tanh(x / cap)."""
    dtype: str = "BF16"
    """Precision the checkpoint was trained in, by safetensors name."""
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    tensors: Mapping[str, TensorFact] | None = None
    """Headers by Hugging Face tensor name; None when only a configuration is at hand."""
    quantization: Quantization | None = None
    """How linear weights are stored; None where they are floats, or blocks of a GGUF."""
    measured_caches: Mapping[str, float] = field(default_factory=dict)
    """Increase of perplexity with a cache of codes, by its precision, as the report of `plimsoll quantize` beside this
    checkpoint has it: 0.02 is 2 % more than with a cache of floats. Empty where nothing was measured."""
    config: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The configuration these facts were read from, for what has no field here."""

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.layers)

    @cached_property
    def kinds(self) -> tuple[tuple[LayerSpec, int], ...]:
        """The distinct specs of the layers, each with the number of layers that have it."""
        found: list[tuple[LayerSpec, int]] = []
        for spec in self.layers:
            place = next((at for at, (one, _) in enumerate(found) if one is spec or one == spec), None)
            if place is None:
                found.append((spec, 1))
            else:
                found[place] = (found[place][0], found[place][1] + 1)
        return tuple(found)

    @cached_property
    def matrix_values(self) -> Mapping[str, int]:
        """Values of all stored matrices, by the type that they are stored in."""
        found: Counter[str] = Counter()
        for fact in (self.tensors or {}).values():
            if len(fact.shape) == 2:
                found[fact.dtype] += fact.shape[0] * fact.shape[1]
        return found

    @property
    def ropes(self) -> list[RopeFacts]:
        """The distinct rotary embeddings of the layers, the first layer's first."""
        found: list[RopeFacts] = []
        for spec, _ in self.kinds:
            if spec.rope is not None and spec.rope not in found:
                found.append(spec.rope)
        return found
