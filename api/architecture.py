"""Architectures as data: which tensor plays which role, and how q, k and v lie in the checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from plimsoll.api.errors import CheckpointError


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


ARCHITECTURES: Mapping[str, Architecture] = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "Qwen2ForCausalLM": LLAMA,
    "Qwen3ForCausalLM": LLAMA,
    "InternLM2ForCausalLM": INTERNLM2,
}


def find_architecture(name: str) -> Architecture:
    """Raises CheckpointError for a class that is not run, listing those that are."""
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise CheckpointError("this architecture is not run", field="architectures", value=name, fix=f"Known: {known}")
    return ARCHITECTURES[name]
