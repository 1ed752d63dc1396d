"""Every key of a config.json is read, harmless or refused; one that is in no list is reported."""

from typing import Any

import pytest

from plimsoll.api.config_keys import HARMLESS, READ, REFUSED, unknown_keys
from plimsoll.api.errors import CheckpointError
from plimsoll.api.facts import config_notes, facts_from_config
from plimsoll.api.families.registry import all_families

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 100, "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
}  # fmt: skip
#: Keys beyond those of their class that config.json files of published checkpoints carry, by the family.
CARRIED = {
    "LlamaForCausalLM": {
        "_name_or_path": "x", "max_sequence_length": 4096, "pretraining_tp": 1, "is_llama_config": True,
        "rope_interleaved": False, "transformers.js_config": {"dtype": "q4"}, "unsloth_fixed": True,
        "rope_scaling": {"factor": 4.0, "finetuned": True, "original_max_position_embeddings": 64, "type": "yarn"},
    },
    "MistralForCausalLM": {"use_flash_attn": True, "sliding_window": None, "unsloth_version": "2024.9"},
    "Qwen2ForCausalLM": {"use_mrope": False, "use_sliding_window": False, "sliding_window": 64,
                         "max_window_layers": 1, "_attn_implementation_autoset": True},
    "Qwen3ForCausalLM": {"layer_types": ["full_attention"] * 2, "rope_scaling": None, "use_cache": True},
    "InternLM2ForCausalLM": {
        "attn_implementation": "eager", "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"},
        "bias": False, "pretraining_tp": 1, "rope_scaling": {"type": "dynamic", "factor": 2.0},
    },
    "Gemma2ForCausalLM": {
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096,
    },
    "Gemma3ForCausalLM": {
        "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "attn_logit_softcapping": None,
        "rope_local_base_freq": 10000, "rope_theta": 1000000, "sliding_window_pattern": 6,
        "cache_implementation": "hybrid",
    },
    "Phi3ForCausalLM": {
        "partial_rotary_factor": 0.5, "original_max_position_embeddings": 64, "lm_head_bias": False,
        "rope_scaling": {"type": "su", "long_factor": [2.0] * 4, "short_factor": [1.0] * 4}, "sliding_window": 2047,
        "full_attn_mod": 1, "interpolate_factor": 1,
    },
}  # fmt: skip


#: Families that run what others refuse.
OWN_KEYS = ("Gemma2ForCausalLM", "Gemma3ForCausalLM", "Phi3ForCausalLM")


def of(architecture: str, **keys: Any) -> dict[str, Any]:
    return CONFIG | {"architectures": [architecture], "model_type": all_families()[architecture].model_type} | keys


def test_no_key_is_in_two_lists_and_every_family_has_its_type() -> None:
    assert not set(READ) & HARMLESS
    assert not set(READ) & set(REFUSED)
    assert not HARMLESS & set(REFUSED)
    assert all_families().keys() == CARRIED.keys()
    for family in all_families().values():
        assert not set(family.keys) & {*READ, *HARMLESS}


@pytest.mark.parametrize("architecture", [name for name in all_families() if name != "InternLM2ForCausalLM"])
def test_every_key_that_transformers_defines_is_known(architecture: str) -> None:
    import transformers

    config = getattr(transformers, architecture).config_class().to_dict()
    assert len(config) > 20
    assert unknown_keys(dict.fromkeys(config, 1) | {"architectures": [architecture]}) == ()


@pytest.mark.parametrize("architecture", list(all_families()))
def test_keys_that_published_checkpoints_carry_are_neither_refused_nor_reported(architecture: str) -> None:
    config = of(architecture, **CARRIED[architecture])
    facts_from_config(config)
    assert config_notes(config) == ()


@pytest.mark.parametrize("architecture", list(all_families()))
def test_unknown_keys_are_reported_in_one_sentence(architecture: str) -> None:
    config = of(architecture, wild_gating=True, rope_scaling={"type": "linear", "factor": 2.0, "bend": 3}, unset=None)
    facts_from_config(config)
    (note,) = config_notes(config, "config.json: ")
    assert note == "config.json: these keys are not known and are ignored: wild_gating, rope_scaling.bend"


@pytest.mark.parametrize("architecture", [name for name in all_families() if name not in OWN_KEYS])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("partial_rotary_factor", 0.5), ("logits_scaling", 8.0), ("attention_multiplier", 0.1),
        ("attn_logit_softcapping", 50.0), ("no_rope_layers", [1, 0]), ("is_causal", False), ("num_local_experts", 8),
        ("per_layer_config", {"0": {"num_attention_heads": 2}}), ("tie_word_embeddings", "no"),
        ("original_max_position_embeddings", "64"), ("rope_theta", True),
    ],
)  # fmt: skip
def test_keys_that_change_the_function_are_refused_by_name(architecture: str, key: str, value: object) -> None:
    # The trained length is read where something is measured from it.
    scaling = {"rope_scaling": {"type": "yarn", "factor": 2.0}}
    with pytest.raises(CheckpointError) as caught:
        facts_from_config(of(architecture, **scaling, **{key: value}))
    assert caught.value.field == key
    assert caught.value.value == value


@pytest.mark.parametrize(
    ("keys", "field"),
    [
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
         "rope_parameters.partial_rotary_factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}},
         "rope_parameters.full_attention"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": "1.2"}}, "rope_scaling.attention_factor"),
        ({"rope_scaling": {"type": "linear", "factor": True}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": "maybe"}}, "rope_scaling.truncate"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "mrope_section": [1, 1]}}, "rope_scaling.mrope_section"),
        ({"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}, "layer_types"),
        ({"model_type": "mistral"}, "model_type"),
        ({"attention_bias": "yes"}, "attention_bias"),
    ],
)  # fmt: skip
def test_values_that_change_the_function_are_refused_by_name(keys: dict[str, Any], field: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        facts_from_config(of("LlamaForCausalLM", **keys))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("architecture", "keys", "field"),
    [
        ("Gemma2ForCausalLM", {"hidden_activation": "relu2"}, "hidden_activation"),
        ("Gemma2ForCausalLM", {"attn_logit_softcapping": 0}, "attn_logit_softcapping"),
        ("Gemma2ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("Gemma2ForCausalLM", {"query_pre_attn_scalar": "256"}, "query_pre_attn_scalar"),
        ("Gemma3ForCausalLM", {"rope_parameters": {"rope_type": "default"}}, "rope_parameters"),
        ("Gemma3ForCausalLM", {"rope_parameters": {"full_attention": 1}}, "full_attention"),
        ("Gemma3ForCausalLM", {"sliding_window_pattern": 0}, "sliding_window_pattern"),
        ("Gemma3ForCausalLM", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("Phi3ForCausalLM", {"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ("Phi3ForCausalLM", {"partial_rotary_factor": 0.2}, "partial_rotary_factor"),
        ("Phi3ForCausalLM", {"rope_scaling": {"type": "longrope"}}, "rope_scaling.long_factor"),
        (
            "Phi3ForCausalLM", {"rope_scaling": {"type": "su", "long_factor": [1.0] * 8, "short_factor": [1.0, -1.0]}},
            "rope_scaling.short_factor",
        ),
        ("LlamaForCausalLM", {"rope_scaling": {"type": "longrope"}}, "rope_scaling.rope_type"),
        ("LlamaForCausalLM", {"rope_scaling": {"type": "linear", "factor": 2, "long_factor": [1.0]}},
         "rope_scaling.long_factor"),
    ],
)  # fmt: skip
def test_what_a_family_reads_and_others_refuse_is_checked(
    architecture: str, keys: dict[str, Any], field: str
) -> None:  # fmt: skip
    with pytest.raises(CheckpointError) as caught:
        facts_from_config(of(architecture, **keys))
    assert caught.value.field == field


def test_a_base_that_is_replaced_is_named() -> None:
    config = of(
        "Qwen3ForCausalLM", rope_parameters={"rope_theta": 1e6, "rope_type": "default"},
        rope_scaling={"rope_type": "yarn", "factor": 4.0},
    )  # fmt: skip
    assert facts_from_config(config).rope.theta == 10000.0
    (note,) = config_notes(config)
    assert '"rope_theta": 1e+06' in note
    config["rope_scaling"]["rope_theta"] = 1e6
    assert (facts_from_config(config).rope.theta, config_notes(config)) == (1e6, ())


def test_keys_that_are_absent_take_the_default_of_their_class() -> None:
    bare = {key: value for key, value in CONFIG.items() if key != "num_key_value_heads"}
    mistral = facts_from_config(bare | of("MistralForCausalLM", num_attention_heads=8, num_key_value_heads=8))
    assert mistral.layers[0].window == 4096
    named = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "num_attention_heads": 16}
    assert facts_from_config(bare | named).num_kv_heads == 8
    assert facts_from_config(bare | named | {"num_key_value_heads": None}).num_kv_heads == 16
    assert facts_from_config(of("MistralForCausalLM", sliding_window=None)).layers[0].window is None
    assert facts_from_config(of("Qwen3ForCausalLM")).head_dim == 128
    assert facts_from_config(of("InternLM2ForCausalLM")).layers[0].qkv_bias
