"""InternLM2 and InternLM2.5 (Cai et al. 2024): Llama's function under other names, with q, k and v in one tensor."""

from dataclasses import replace

from plimsoll.api.config_values import flag
from plimsoll.api.families.family import Config, Family, Linear, Names
from plimsoll.api.families.reading import model_facts, plain_layer, read_shape, refuse_windows
from plimsoll.api.model import ModelFacts

NAMES = Names(
    linears=(
        Linear("attention.wqkv", ("q", "k", "v"), "grouped"),
        Linear("attention.wo", ("o",)),
        Linear("feed_forward.w1", ("gate",)),
        Linear("feed_forward.w3", ("up",)),
        Linear("feed_forward.w2", ("down",)),
    ),
    norms={"attention_norm": "attention_norm", "mlp_norm": "ffn_norm"},
    embedding="model.tok_embeddings",
    head="output",
)


def _facts(config: Config) -> ModelFacts:
    shape = read_shape(config)
    refuse_windows(config, shape)
    bias = flag(config, "bias", True)
    layer = replace(plain_layer(config, shape), qkv_bias=bias, output_bias=bias)
    return model_facts(config, shape, [layer] * shape.layers)


FAMILIES = (Family("InternLM2ForCausalLM", "internlm2", NAMES, _facts),)
