"""Mistral 7B and Ministral (Jiang et al. 2023): Llama with a sliding window."""

from dataclasses import replace
from typing import Any

from plimsoll.api.config_values import flag, integer, short
from plimsoll.api.errors import CheckpointError
from plimsoll.api.families.family import Config, Family, Gguf, GgufMetadata
from plimsoll.api.families.llama import NAMES, gguf_biases
from plimsoll.api.families.reading import WINDOW, layer_types, model_facts, plain_layer, read_shape
from plimsoll.api.model import ModelFacts


def _facts(config: Config) -> ModelFacts:
    shape = read_shape(config, kv_heads=8)
    bias = flag(config, "attention_bias")
    full = replace(plain_layer(config, shape), qkv_bias=bias, output_bias=bias)
    kinds = layer_types(config, shape.layers)
    if config.get("sliding_window", WINDOW) is None:
        return model_facts(config, shape, [full] * shape.layers)
    windowed = replace(full, window=integer(config, "sliding_window", default=WINDOW))
    if kinds is None:
        return model_facts(config, shape, [windowed] * shape.layers)
    # transformers' class for `mistral` puts the window on every layer and ignores layer_types.
    if not all(kinds) and config.get("model_type", "mistral") == "mistral":
        raise CheckpointError(
            "a model of type mistral has its window on every layer", field="layer_types",
            value=short(config["layer_types"]),
            fix="Set model_type to ministral where layers differ; else delete layer_types",
        )  # fmt: skip
    return model_facts(config, shape, [windowed if sliding else full for sliding in kinds])


def _gguf(data: GgufMetadata) -> dict[str, Any]:
    return {**gguf_biases(data), "sliding_window": data.count("attention.sliding_window")}


FAMILIES = (
    Family(
        "MistralForCausalLM", "mistral", NAMES, _facts,
        # Some converters write 0 for no window: such a file is Llama's.
        gguf=Gguf(("llama", "internlm2"), _gguf, lambda data: data.truthy("attention.sliding_window"), permuted=True),
    ),
)  # fmt: skip
