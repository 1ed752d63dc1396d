"""Architectures as data: which tensor plays which role, and how q, k and v lie in the checkpoint. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from plimsoll.api.model import ModelFacts


@dataclass(frozen=True)
class Architecture:
    """Hugging Face tensor names of a decoder with RMS norms, gated SiLU and rotary positions.

    Names of a layer follow `layer` with its number put in; those of linear layers lack the `.weight` or `.bias`.
    """

    embedding: str
    final_norm: str
    head: str
    layer: str
    attention_norm: str
    qkv: tuple[str, ...]
    """Parts of the fused projection, top to bottom."""
    output: str
    mlp_norm: str
    gate_up: tuple[str, str]
    down: str
    q_norm: str = ""
    k_norm: str = ""
    qkv_layout: Literal["stacked", "grouped"] = "stacked"
    """`grouped`: one tensor [G, H/G + 2, D, hidden], each key-value head after the query heads that share it."""


LLAMA = Architecture(
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    layer="model.layers.{}.",
    attention_norm="input_layernorm",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    output="self_attn.o_proj",
    mlp_norm="post_attention_layernorm",
    gate_up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    q_norm="self_attn.q_norm",
    k_norm="self_attn.k_norm",
)

INTERNLM2 = Architecture(
    embedding="model.tok_embeddings",
    final_norm="model.norm",
    head="output",
    layer="model.layers.{}.",
    attention_norm="attention_norm",
    qkv=("attention.wqkv",),
    qkv_layout="grouped",
    output="attention.wo",
    mlp_norm="ffn_norm",
    gate_up=("feed_forward.w1", "feed_forward.w3"),
    down="feed_forward.w2",
)


def expected_tensors(arch: Architecture, facts: ModelFacts) -> Mapping[str, tuple[int, ...]]:
    """Name and shape of every tensor the model needs, in the order it is loaded. A tied head is not among them."""
    hidden, inner, dim = facts.hidden_size, facts.intermediate_size, facts.head_dim
    q_rows, kv_rows = facts.num_heads * dim, facts.num_kv_heads * dim
    qkv_rows = (q_rows, kv_rows, kv_rows) if arch.qkv_layout == "stacked" else (q_rows + 2 * kv_rows,)
    shapes: dict[str, tuple[int, ...]] = {f"{arch.embedding}.weight": (facts.vocab_size, hidden)}

    def add(name: str, rows: int, columns: int, bias: bool) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"{name}.bias"] = (rows,)

    for index in range(facts.num_layers):
        prefix = arch.layer.format(index)
        shapes[f"{prefix}{arch.attention_norm}.weight"] = (hidden,)
        for name, rows in zip(arch.qkv, qkv_rows, strict=True):
            add(prefix + name, rows, hidden, facts.qkv_bias)
        if facts.qk_norm:
            shapes[f"{prefix}{arch.q_norm}.weight"] = (dim,)
            shapes[f"{prefix}{arch.k_norm}.weight"] = (dim,)
        add(prefix + arch.output, hidden, q_rows, facts.output_bias)
        shapes[f"{prefix}{arch.mlp_norm}.weight"] = (hidden,)
        for name in arch.gate_up:
            add(prefix + name, inner, hidden, facts.mlp_bias)
        add(prefix + arch.down, hidden, inner, facts.mlp_bias)
    shapes[f"{arch.final_norm}.weight"] = (hidden,)
    if not facts.tie_embeddings:
        shapes[f"{arch.head}.weight"] = (facts.vocab_size, hidden)
    return shapes
