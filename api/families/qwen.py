"""Qwen2 (biases on q, k and v) and Qwen3 (norms of q and k in their place), dense."""

from dataclasses import replace

from plimsoll.api.config_values import flag, integer
from plimsoll.api.families.family import Config, Family, Gguf
from plimsoll.api.families.llama import NAMES
from plimsoll.api.families.reading import WINDOW, Shape, layer_types, model_facts, plain_layer, read_shape
from plimsoll.api.model import LayerSpec, ModelFacts


def _qwen2(config: Config) -> ModelFacts:
    shape = read_shape(config, kv_heads=32)
    # Read and not used, as transformers' class does: its biases are those of q, k and v.
    flag(config, "attention_bias")
    return _windowed(config, shape, replace(plain_layer(config, shape), qkv_bias=True))


def _qwen3(config: Config) -> ModelFacts:
    shape = read_shape(config, kv_heads=32, head_dim=128)
    bias = flag(config, "attention_bias")
    layer = replace(plain_layer(config, shape), qkv_bias=bias, output_bias=bias, qk_norm="head")
    return _windowed(config, shape, layer)


def _windowed(config: Config, shape: Shape, full: LayerSpec) -> ModelFacts:
    """A window only where the configuration says so, and then on the layers it names, or from some layer on."""
    kinds = layer_types(config, shape.layers)
    if not flag(config, "use_sliding_window") or config.get("sliding_window", WINDOW) is None:
        return model_facts(config, shape, [full] * shape.layers)
    windowed = replace(full, window=integer(config, "sliding_window", default=WINDOW))
    if kinds is None:
        first = integer(config, "max_window_layers", default=28, least=0)
        kinds = tuple(index >= first for index in range(shape.layers))
    return model_facts(config, shape, [windowed if sliding else full for sliding in kinds])


FAMILIES = (
    Family("Qwen2ForCausalLM", "qwen2", NAMES, _qwen2, gguf=Gguf(("qwen2",))),
    Family("Qwen3ForCausalLM", "qwen3", NAMES, _qwen3, gguf=Gguf(("qwen3",))),
)
