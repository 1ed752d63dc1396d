"""Phi-3 (arXiv 2404.14219) and Phi-4-mini (arXiv 2503.01743): Llama's function with fused tensors.

One tensor holds q, k and v, another gate and up. A part of each head may be rotated, by LongRoPE (Ding et al. 2024).
"""

from dataclasses import replace
from typing import Any

from plimsoll.api.config_values import integer, number
from plimsoll.api.families.family import Config, Family, Gguf, GgufMetadata, Linear, Names
from plimsoll.api.families.reading import model_facts, read_activation, read_shape, rms_norm
from plimsoll.api.model import LayerSpec, ModelFacts
from plimsoll.api.rope_config import rope_from_config

NAMES = Names(
    linears=(
        Linear("self_attn.qkv_proj", ("q", "k", "v")),
        Linear("self_attn.o_proj", ("o",)),
        Linear("mlp.gate_up_proj", ("gate", "up")),
        Linear("mlp.down_proj", ("down",)),
    ),
    norms={"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
)


def _facts(config: Config) -> ModelFacts:
    shape = read_shape(config)
    rope = rope_from_config(config, shape.max_position, head_dim=shape.head_dim, original=4096)
    layer = LayerSpec(
        norm=rms_norm(config, default=1e-5), scale=shape.head_dim**-0.5, rope=rope,
        activation=read_activation(config),
    )  # fmt: skip
    if config.get("sliding_window") is not None:
        layer = replace(layer, window=integer(config, "sliding_window"))
    return model_facts(config, shape, [layer] * shape.layers)


def _gguf(data: GgufMetadata) -> dict[str, Any]:
    head_dim = data.count("embedding_length") // data.count("attention.head_count")
    rotated = data.count("rope.dimension_count", head_dim)
    found: dict[str, Any] = {"head_dim": head_dim, "partial_rotary_factor": rotated / head_dim}
    # Some converters write 0 for no window.
    if data.truthy("attention.sliding_window"):
        found["sliding_window"] = data.count("attention.sliding_window")
    if data.has_tensor("rope_factors_long.weight"):
        long, short = (data.vector(f"rope_factors_{kind}.weight", rotated // 2) for kind in ("long", "short"))
        original = data.count("rope.scaling.original_context_length", 4096)
        found["original_max_position_embeddings"] = original
        found["rope_scaling"] = {"type": "longrope", "long_factor": long, "short_factor": short}
        if data.truthy("rope.scaling.attn_factor"):
            found["rope_scaling"]["attention_factor"] = number(
                {"attn_factor": data.number("rope.scaling.attn_factor")}, "attn_factor", 1.0
            )
    return found


FAMILIES = (
    Family(
        "Phi3ForCausalLM", "phi3", NAMES, _facts,
        gguf=Gguf(
            ("phi3",), _gguf, partial=True,
            layer={
                "attn_norm": "attention_norm", "attn_qkv": "q", "attn_output": "o", "ffn_norm": "mlp_norm",
                "ffn_up": "gate", "ffn_down": "down",
            },
        ),
    ),
)  # fmt: skip
