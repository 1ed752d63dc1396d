"""From config.json to facts: both generations of transformers, five architectures, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.api.errors import CheckpointError
from plimsoll.api.facts import config_notes, facts_from_config
from plimsoll.api.layer_tensors import expected_tensors
from plimsoll.checkpoint import open_checkpoint
from tests.support.checkpoints import ARCHITECTURES, make_checkpoint

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": True,
}  # fmt: skip


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_tensors_expected_are_those_that_are_saved(architecture: str, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model", architecture, tokenizer=False)
    checkpoint = open_checkpoint(path)
    bare = facts_from_config(json.loads((path / "config.json").read_text()))
    assert bare == facts_from_config(checkpoint.config)
    assert {name: fact.shape for name, fact in checkpoint.tensors.items()} == expected_tensors(bare)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_both_generations_of_rope_names_mean_the_same(kind: str) -> None:
    four = CONFIG | {"rope_theta": 5e5, "rope_scaling": {"type": kind, "factor": 2.0}}
    four_later = CONFIG | {"rope_theta": 5e5, "rope_scaling": {"rope_type": kind, "factor": 2.0}}
    five = CONFIG | {"rope_parameters": {"rope_type": kind, "rope_theta": 5e5, "factor": 2.0}}
    ropes = [facts_from_config(config).rope for config in (four, four_later, five)]
    assert ropes[0] == ropes[1] == ropes[2]
    assert (ropes[0].theta, ropes[0].kind, ropes[0].params["factor"]) == (5e5, kind, 2.0)


def test_defaults_that_configurations_leave_out() -> None:
    config = {key: value for key, value in CONFIG.items() if key not in ("num_key_value_heads", "tie_word_embeddings")}
    facts = facts_from_config(config | {"eos_token_id": [2, 7], "head_dim": None})
    assert (facts.num_kv_heads, facts.head_dim, facts.tie_embeddings) == (4, 16, False)
    assert (facts.eos_token_ids, facts.rope.kind, facts.rope.theta) == ((2, 7), "default", 10000.0)
    assert facts_from_config(config | {"eos_token_id": 2}).eos_token_ids == (2,)
    assert facts_from_config(config | {"head_dim": 32}).head_dim == 32


@pytest.mark.parametrize(
    ("architecture", "extra", "layers"),
    [
        ("MistralForCausalLM", {"sliding_window": 8}, (True, True)),
        ("Qwen2ForCausalLM", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}, (False, True)),
        ("Qwen3ForCausalLM", {"sliding_window": 8, "use_sliding_window": True,
                              "layer_types": ["sliding_attention", "full_attention"]}, (True, False)),
    ],
)  # fmt: skip
def test_sliding_windows(architecture: str, extra: dict[str, Any], layers: tuple[bool, ...]) -> None:
    facts = facts_from_config(CONFIG | {"architectures": [architecture]} | extra)
    assert [layer.window for layer in facts.layers] == [8 if sliding else None for sliding in layers]


def test_a_window_that_is_not_used_is_none() -> None:
    for architecture in ("Qwen2ForCausalLM", "LlamaForCausalLM"):
        facts = facts_from_config(CONFIG | {"architectures": [architecture], "sliding_window": 8})
        assert [layer.window for layer in facts.layers] == [None, None]


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures", "LlamaForCausalLM"),
        ({"architectures": None}, "architectures", "exactly one"),
        ({"hidden_size": None}, "hidden_size", "is missing"),
        ({"num_attention_heads": 0}, "num_attention_heads", "1 or more"),
        ({"num_key_value_heads": 3}, "num_key_value_heads", "[1, 2, 4]"),
        ({"num_hidden_layers": -1}, "num_hidden_layers", "1 or more"),
        ({"vocab_size": True}, "vocab_size", "whole number"),
        ({"intermediate_size": 1e30}, "intermediate_size", "whole number"),
        ({"hidden_size": 66}, "hidden_size", "multiple"),
        ({"head_dim": 15}, "head_dim", "even"),
        ({"hidden_act": "gelu"}, "hidden_act", "silu"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config.quant_method", "awq"),
        ({"rope_scaling": {"type": "longrope", "factor": 2}}, "rope_scaling.rope_type", "linear"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor", "needs a number"),
        ({"rope_scaling": [1]}, "rope_scaling", "object"),
        ({"rope_theta": 0}, "rope_theta", "above 0"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps", "above 0"),
        ({"eos_token_id": "x"}, "eos_token_id", "token id"),
    ],
)
def test_what_is_not_run_or_makes_no_sense_is_named(change: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        facts_from_config(CONFIG | change)
    assert caught.value.field == field
    assert said in str(caught.value)


SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
SCALING = st.dictionaries(
    st.sampled_from(["type", "rope_type", "factor", "rope_theta", "truncate", "partial_rotary_factor", "beta_fast"]),
    SCALAR | st.sampled_from(["linear", "yarn", "llama3", "dynamic", "default"]),
)
FIELDS = [
    *CONFIG, "rope_scaling", "rope_parameters", "head_dim", "sliding_window", "layer_types", "eos_token_id",
    "torch_dtype", "quantization_config", "use_sliding_window", "model_type", "tie_word_embeddings", "is_causal",
    "original_max_position_embeddings", "partial_rotary_factor", "a key of nobody",
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.sampled_from(FIELDS), SCALAR | SCALING | st.lists(SCALAR, max_size=3), max_size=4),
    st.sampled_from(ARCHITECTURES),
)
def test_no_configuration_gets_more_than_a_refusal(change: dict[str, Any], architecture: str) -> None:
    said = "read"
    try:
        facts_from_config(CONFIG | {"architectures": [architecture]} | change)
        config_notes(CONFIG | {"architectures": [architecture]} | change)
    except CheckpointError as error:
        said = str(error)
    assert 0 < len(said) < 2000
