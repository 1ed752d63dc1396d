"""Angles against transformers' own rotary module, kind by kind."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from plimsoll.api.errors import SpecError
from plimsoll.api.model import LayerSpec, ModelFacts, NormSpec, RopeFacts
from plimsoll.api.rope import override_rope
from plimsoll.runtime.models import rope as rope_module
from plimsoll.runtime.models.rope import inverse_frequencies, rope_table

TRAINED = 64


def make_facts(rope: RopeFacts) -> ModelFacts:
    return ModelFacts(
        architecture="LlamaForCausalLM",
        vocab_size=32,
        hidden_size=128,
        intermediate_size=32,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        max_position=TRAINED,
        rope=rope,
        tie_embeddings=True,
        layers=(LayerSpec(NormSpec(1e-6), 32**-0.5, rope),),
        final_norm=NormSpec(1e-6),
    )


def transformers_angles(rope: RopeFacts, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [length, head_dim / 2] of a whole prompt of `length` tokens."""
    config = LlamaConfig(
        hidden_size=128,
        num_attention_heads=4,
        max_position_embeddings=TRAINED,
        rope_parameters={"rope_type": rope.kind, "rope_theta": rope.theta, **rope.params},
    )
    module = LlamaRotaryEmbedding(config)
    cos, sin = module(torch.zeros(1, length, 128), torch.arange(length)[None])
    return cos[0, :, :16], sin[0, :, :16]


YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
KINDS: dict[str, RopeFacts] = {
    "default": RopeFacts(theta=500.0),
    "linear": RopeFacts(theta=500.0, kind="linear", params={"factor": 2.5}),
    "dynamic": RopeFacts(theta=500.0, kind="dynamic", params={"factor": 2.0}),
    "yarn": RopeFacts(theta=500.0, kind="yarn", params=YARN),
    "yarn with its own bounds": RopeFacts(kind="yarn", params=YARN | {"beta_fast": 8.0, "beta_slow": 2.0}),
    "yarn with an attention factor": RopeFacts(kind="yarn", params=YARN | {"attention_factor": 0.7}),
    "yarn as DeepSeek has it": RopeFacts(kind="yarn", params=YARN | {"mscale": 0.707, "mscale_all_dim": 0.9}),
    "yarn without rounding": RopeFacts(kind="yarn", params=YARN | {"truncate": False}),
    "llama3": RopeFacts(
        theta=500.0,
        kind="llama3",
        params={
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
}


@pytest.mark.parametrize("length", [TRAINED, 3 * TRAINED])
@pytest.mark.parametrize("name", KINDS)
def test_angles_are_those_of_transformers(name: str, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rope_module, "TABLE_ROWS", 50)
    rope = KINDS[name]
    cos, sin = rope_table(make_facts(rope), rope, length)
    wanted_cos, wanted_sin = transformers_angles(rope, length)
    assert cos.dtype == sin.dtype == torch.float32
    torch.testing.assert_close(cos, wanted_cos, rtol=0, atol=2e-5)
    torch.testing.assert_close(sin, wanted_sin, rtol=0, atol=2e-5)


def test_dynamic_does_not_depend_on_the_prompt_but_on_the_longest_one_allowed() -> None:
    rope = KINDS["dynamic"]
    plain = rope_table(make_facts(rope), RopeFacts(theta=500.0), TRAINED)
    assert torch.equal(rope_table(make_facts(rope), rope, TRAINED // 2)[0], plain[0][: TRAINED // 2])
    stretched = rope_table(make_facts(rope), rope, 2 * TRAINED)
    assert not torch.allclose(stretched[0][:TRAINED], plain[0])
    # Base 500 * (2 * 2 - 1) ** (32 / 30).
    wanted = 1 / (500 * 3 ** (32 / 30)) ** (torch.arange(0, 32, 2) / 32)
    torch.testing.assert_close(inverse_frequencies(make_facts(rope), rope, 2 * TRAINED)[0], wanted)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
def test_override_stretches_the_checkpoints_own_frequencies(kind: str) -> None:
    facts = make_facts(KINDS["default"])
    rope = override_rope(facts, kind, 2.0)
    assert (rope.kind, rope.theta, rope.params["factor"]) == (kind, 500.0, 2.0)
    cos, _ = rope_table(facts, rope, 2 * TRAINED)
    torch.testing.assert_close(cos, transformers_angles(rope, 2 * TRAINED)[0], rtol=0, atol=2e-5)


def test_override_counts_from_the_original_length_of_a_stretched_checkpoint() -> None:
    facts = make_facts(KINDS["yarn"])
    assert override_rope(facts, "yarn", 8.0).params == {"factor": 8.0, "original_max_position_embeddings": 16}


def test_override_can_be_absent_or_plain() -> None:
    facts = make_facts(KINDS["llama3"])
    assert override_rope(facts, None, None) is facts.rope
    assert override_rope(facts, "default", None) == RopeFacts(theta=500.0)


@pytest.mark.parametrize(
    ("kind", "factor", "field"),
    [
        ("ntk", 2.0, "context.rope.type"),
        (None, 2.0, "context.rope.type"),
        ("linear", None, "context.rope.factor"),
        ("yarn", 0.5, "context.rope.factor"),
        ("dynamic", float("nan"), "context.rope.factor"),
    ],
)
def test_override_that_makes_no_sense_names_the_field(kind: str | None, factor: float | None, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        override_rope(make_facts(KINDS["default"]), kind, factor)
    assert caught.value.field == field
