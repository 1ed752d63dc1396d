"""Llama (Touvron et al. 2023) and everything that calls itself so."""

from dataclasses import replace

from plimsoll.api.config_values import flag
from plimsoll.api.families.family import Config, Family, Gguf, GgufMetadata, Linear, Names
from plimsoll.api.families.reading import model_facts, plain_layer, read_shape, refuse_windows
from plimsoll.api.model import ModelFacts

#: Shared by every family that kept Llama's names.
NAMES = Names(
    linears=(
        Linear("self_attn.q_proj", ("q",)),
        Linear("self_attn.k_proj", ("k",)),
        Linear("self_attn.v_proj", ("v",)),
        Linear("self_attn.o_proj", ("o",)),
        Linear("mlp.gate_proj", ("gate",)),
        Linear("mlp.up_proj", ("up",)),
        Linear("mlp.down_proj", ("down",)),
    ),
    norms={
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
        "q_norm": "self_attn.q_norm",
        "k_norm": "self_attn.k_norm",
    },
)


def _facts(config: Config) -> ModelFacts:
    shape = read_shape(config)
    refuse_windows(config, shape)
    bias = flag(config, "attention_bias")
    layer = replace(
        plain_layer(config, shape), qkv_bias=bias, output_bias=bias, mlp_bias=flag(config, "mlp_bias")
    )  # fmt: skip
    return model_facts(config, shape, [layer] * shape.layers)


def gguf_biases(data: GgufMetadata) -> dict[str, bool]:
    """What a file of Llama's architecture says of biases: by the tensors alone."""
    return {
        "attention_bias": data.has_tensor("blk.0.attn_q.bias"), "mlp_bias": data.has_tensor("blk.0.ffn_gate.bias"),
    }  # fmt: skip


FAMILIES = (
    Family(
        "LlamaForCausalLM", "llama", NAMES, _facts,
        # InternLM2 is Llama but for its packed wqkv, which the converter unpacks. Mistral files call themselves llama.
        gguf=Gguf(
            ("llama", "internlm2"), gguf_biases, lambda data: not data.truthy("attention.sliding_window"), permuted=True
        ),
    ),
)  # fmt: skip
