"""Gemma 2 (arXiv 2408.00118) and the text models of Gemma 3 (arXiv 2503.19786).

Norms of 1 + w stand around attention and MLP, embeddings are multiplied by sqrt(hidden size), and layers of a sliding
window lie between layers of full attention.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from plimsoll.api.config_values import flag, integer, number, short
from plimsoll.api.errors import CheckpointError
from plimsoll.api.families.family import GGUF_LAYER, Config, Family, Gguf, GgufMetadata
from plimsoll.api.families.llama import NAMES as LLAMA
from plimsoll.api.families.reading import Shape, layer_types, model_facts, read_activation, read_shape, rms_norm
from plimsoll.api.model import LayerSpec, ModelFacts, RopeFacts
from plimsoll.api.rope_config import rope_from_config

NAMES = replace(
    LLAMA,
    norms={
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
        "q_norm": "self_attn.q_norm",
        "k_norm": "self_attn.k_norm",
    },
)
_KEYS = (
    "hidden_activation", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
    "sliding_window_pattern", "_sliding_window_pattern", "rope_local_base_freq",
)  # fmt: skip
#: llama.cpp knows the largest models by their number of layers: they scale scores by hidden size over heads.
_LARGEST = {"gemma2": 46, "gemma3": 62}
_GGUF_LAYER = {**GGUF_LAYER, "post_attention_norm": "attention_post_norm", "post_ffw_norm": "mlp_post_norm"}


def _gemma2(config: Config) -> ModelFacts:
    shape = _shape(config)
    layer = replace(
        _layer(config), rope=rope_from_config(config, shape.max_position),
        attention_softcap=_cap(config, "attn_logit_softcapping", 50.0),
    )  # fmt: skip
    return _alternating(config, shape, layer, layer, every=2, cap=_cap(config, "final_logit_softcapping", 30.0))


def _gemma3(config: Config) -> ModelFacts:
    shape = _shape(config)
    full, local = _ropes(config, shape.max_position)
    layer = replace(
        _layer(config), qk_norm="head", attention_softcap=_cap(config, "attn_logit_softcapping", None)
    )  # fmt: skip
    every = integer(config, "sliding_window_pattern", default=integer(config, "_sliding_window_pattern", default=6))
    cap = _cap(config, "final_logit_softcapping", None)
    return _alternating(config, shape, replace(layer, rope=full), replace(layer, rope=local), every=every, cap=cap)


def _shape(config: Config) -> Shape:
    return read_shape(config, kv_heads=4, head_dim=256)


def _layer(config: Config) -> LayerSpec:
    bias = flag(config, "attention_bias")
    key = "hidden_activation" if config.get("hidden_activation") is not None else "hidden_act"
    return LayerSpec(
        norm=rms_norm(config, offset=1.0),
        scale=number(config, "query_pre_attn_scalar", 256.0) ** -0.5,
        rope=None,
        placement="around",
        qkv_bias=bias,
        output_bias=bias,
        activation=read_activation(config, key, "gelu_pytorch_tanh", runs=("gelu_tanh", "gelu", "silu")),
    )


def _alternating(
    config: Config, shape: Shape, full: LayerSpec, local: LayerSpec, *, every: int, cap: float | None
) -> ModelFacts:
    """Windows on the layers that the configuration names, or on all but each `every`-th."""
    if config.get("sliding_window", 4096) is not None:
        local = replace(local, window=integer(config, "sliding_window", default=4096))
    sliding = layer_types(config, shape.layers)
    if sliding is None:
        sliding = tuple((index + 1) % every != 0 for index in range(shape.layers))
    return model_facts(
        config, shape, [local if one else full for one in sliding],
        rope=full.rope, embedding_multiplier=float(shape.hidden) ** 0.5, logit_softcap=cap,
        tie_embeddings=flag(config, "tie_word_embeddings", True),
    )  # fmt: skip


def _cap(config: Config, key: str, default: float | None) -> float | None:
    """A soft cap; null is none."""
    if config.get(key, default) is None:
        return None
    return number(config, key, default or 0.0)


def _ropes(config: Config, max_position: int) -> tuple[RopeFacts, RopeFacts]:
    """Of full layers and of sliding ones: an object for each in `rope_parameters`, or keys beside each other."""
    nested = _object(config, "rope_parameters")
    if any(key not in ("full_attention", "sliding_attention") for key in nested):
        raise CheckpointError(
            "must hold one object for full_attention and one for sliding_attention", field="rope_parameters",
            value=short(nested), fix="Use the config.json that came with the weights",
        )  # fmt: skip
    plain = {key: value for key, value in config.items() if key not in ("rope_parameters", "rope_scaling")}
    # As transformers does: an old `rope_scaling` is of the full layers.
    scaled = {**_object(nested, "full_attention"), **_object(config, "rope_scaling")}
    full = {**plain, "rope_parameters": scaled, "rope_theta": number(config, "rope_theta", 1e6)}
    base = number(config, "rope_local_base_freq", 1e4)
    local = {**plain, "rope_parameters": _object(nested, "sliding_attention"), "rope_theta": base}
    return rope_from_config(full, max_position), rope_from_config(local, max_position)


def _object(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object of the configuration; null counts as an empty one. Raises CheckpointError."""
    value = values.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise CheckpointError("must be an object", field=key, value=short(value))
    return value or {}


def _gguf(data: GgufMetadata) -> dict[str, Any]:
    """Keys that both share; the names of layers are not stored, nor is the scale."""
    heads, layers = data.count("attention.head_count"), data.count("block_count")
    head_dim = data.count("attention.key_length", 256)
    largest = layers == _LARGEST["gemma3" if data.has_tensor("blk.0.attn_q_norm.weight") else "gemma2"]
    return {
        "hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": data.count("embedding_length") // heads if largest else head_dim,
        "sliding_window": data.count("attention.sliding_window", 4096),
    }  # fmt: skip


def _gguf2(data: GgufMetadata) -> dict[str, Any]:
    return {
        **_gguf(data), "attn_logit_softcapping": data.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": data.number("final_logit_softcapping", 30.0),
    }  # fmt: skip


def _gguf3(data: GgufMetadata) -> dict[str, Any]:
    found = {**_gguf(data), "rope_theta": data.number("rope.freq_base", 1e6)}
    if data.truthy("rope.freq_base_swa"):
        found["rope_local_base_freq"] = data.number("rope.freq_base_swa")
    return found


FAMILIES = (
    Family(
        "Gemma2ForCausalLM", "gemma2", NAMES, _gemma2, keys=_KEYS, tied=True,
        gguf=Gguf(("gemma2",), _gguf2, layer=_GGUF_LAYER, norm_offset=1.0),
    ),
    Family(
        "Gemma3ForCausalLM", "gemma3_text", NAMES, _gemma3, keys=_KEYS, tied=True,
        gguf=Gguf(("gemma3",), _gguf3, layer=_GGUF_LAYER, norm_offset=1.0),
    ),
)  # fmt: skip
