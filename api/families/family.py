"""What one family file says of its models, as data.

Roles name the parts of a layer everywhere: linears q, k, v, o, gate, up, down; norms attention_norm, mlp_norm,
attention_post_norm, mlp_post_norm, q_norm, k_norm.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from plimsoll.api.model import ModelFacts

Config = Mapping[str, Any]
"""A Hugging Face `config.json`."""


@dataclass(frozen=True)
class Linear:
    """A linear as the checkpoint stores it: the rows of its roles, one after another."""

    module: str
    """Name in its layer, without `.weight` or `.bias`."""
    roles: tuple[str, ...]
    layout: Literal["stacked", "grouped"] = "stacked"
    """`grouped`: [G, H/G + 2, D, hidden], each key-value head after the query heads that share it."""


@dataclass(frozen=True)
class Names:
    """Hugging Face tensor names. Names of a layer follow `layer` with the layer's number put in."""

    linears: tuple[Linear, ...]
    norms: Mapping[str, str]
    """Role to module, for every norm that a model of the family may have."""
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    layer: str = "model.layers.{}."

    def linear(self, role: str) -> Linear:
        """The stored linear that holds `role`. Raises KeyError."""
        for one in self.linears:
            if role in one.roles:
                return one
        raise KeyError(role)

    def module(self, role: str) -> str:
        """Name in its layer of the norm or the stored linear of `role`. Raises KeyError."""
        return self.norms[role] if role in self.norms else self.linear(role).module


@dataclass(frozen=True)
class Grouping:
    """Linears of one layer that share a scale of their input channels, and what the scale is folded into.

    Column k of the targets is multiplied by s[k], and channel k of the source divided by it: the function stays, and
    large channels get finer steps (AWQ, Lin et al. 2023).
    """

    source: str
    """Role of the norm or linear whose output channels the scale divides."""
    targets: tuple[str, ...]
    """Roles of the linears whose input channels it multiplies."""
    heads: bool = False
    """The source's channels are key-value heads, each feeding the query heads that share it."""


#: Every decoder with a norm before attention and a gated MLP. Norms of queries and keys lie behind q and k, and norms
#: after attention and MLP behind o and down: nothing is folded into or through them.
GATED = (
    Grouping("attention_norm", ("q", "k", "v")),
    Grouping("v", ("o",), heads=True),
    Grouping("mlp_norm", ("gate", "up")),
    Grouping("up", ("down",)),
)

#: A tensor of a GGUF's layer to the role that it holds, or the first of the roles.
GGUF_LAYER: Mapping[str, str] = {
    "attn_norm": "attention_norm", "attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_output": "o",
    "attn_q_norm": "q_norm", "attn_k_norm": "k_norm", "ffn_norm": "mlp_norm", "ffn_gate": "gate", "ffn_up": "up",
    "ffn_down": "down",
}  # fmt: skip


class GgufMetadata(Protocol):
    """A GGUF's metadata of its architecture, by keys without the architecture's name. Errors name file and key."""

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 1. Raises CheckpointError."""

    def number(self, key: str, default: float | None = None) -> float:
        """A number above 0. Raises CheckpointError."""

    def truthy(self, key: str) -> bool:
        """Whether the key is there, and not 0."""

    def has_tensor(self, name: str) -> bool:
        """Whether the file has a tensor of that name."""

    def vector(self, name: str, length: int) -> list[float]:
        """The values of an F32 tensor. Raises CheckpointError for another type or length."""


def _nothing(data: GgufMetadata) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Gguf:
    """How llama.cpp writes a family."""

    architectures: tuple[str, ...]
    """Values of `general.architecture`."""
    config: Callable[[GgufMetadata], dict[str, Any]] = _nothing
    """Keys of a `config.json` beyond those that every family has, or in their place."""
    applies: Callable[[GgufMetadata], bool] = lambda data: True
    """Whether a file of these architectures is of this family; the first family that says so has it."""
    layer: Mapping[str, str] = field(default_factory=lambda: GGUF_LAYER)
    """Tensor to role."""
    partial: bool = False
    """`rope.dimension_count` is the part of a head that is rotated, and not the size of a head."""
    permuted: bool = False
    """Rows of q and k pair rotated elements side by side."""
    norm_offset: float = 0.0
    """What the converter has added to the weights of norms."""


@dataclass(frozen=True)
class Family:
    """One class of models."""

    architecture: str
    """Hugging Face class name, e.g. `LlamaForCausalLM`."""
    model_type: str
    """By which transformers chooses the class."""
    names: Names
    facts: Callable[[Config], ModelFacts]
    """Raises CheckpointError for a key whose value is missing, senseless or not run."""
    keys: tuple[str, ...] = ()
    """Keys of `config.json` that `facts` reads beyond those of every family (`config_keys.READ`)."""
    groupings: tuple[Grouping, ...] = GATED
    gguf: Gguf | None = None
    tied: bool = False
    """What an absent `tie_word_embeddings` means."""
