"""A GGUF's blocks are rounded a second time only where somebody names it, and then with what it costs."""

from dataclasses import replace
from typing import Any

import pytest

from plimsoll.api.blocks import block_bits, stored_blocks
from plimsoll.api.budget import RUNS, Load, budget
from plimsoll.api.device import TORCH_TABLE, DeviceFacts
from plimsoll.api.errors import DoesNotFitError
from plimsoll.api.facts import facts_from_config
from plimsoll.api.layer_tensors import expected_tensors
from plimsoll.api.model import ModelFacts, TensorFact
from plimsoll.api.precision import held_codes
from plimsoll.api.second_rounding import as_stored, refused_under_auto, rounded_again

MIB = 1 << 20
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8,
    "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 2048, "vocab_size": 4096,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": True,
}  # fmt: skip
LOAD = Load(max_length=512, max_batched_tokens=256, max_running=2, tensor=1)


def stored(dtype: str, head: str = "F16", config: dict[str, Any] = CONFIG) -> ModelFacts:
    """The model with its linears in blocks of `dtype`, the embedding as `head` and vectors in float32."""
    tensors = {
        name: TensorFact(name, shape, "F32" if len(shape) == 1 else head if "embed" in name else dtype, 1)
        for name, shape in expected_tensors(facts_from_config(config)).items()
    }
    return replace(facts_from_config(config), tensors=tensors)


def device(mib: int) -> DeviceFacts:
    return DeviceFacts("cpu", mib * MIB, TORCH_TABLE)


def test_blocks_are_those_of_most_values() -> None:
    assert stored_blocks(stored("Q4_K", "Q6_K")) == "Q4_K"
    for floats in ("F32", "F16", "BF16"):
        assert stored_blocks(stored(floats)) is None
        assert rounded_again(stored(floats), "w4a16") is None
    assert stored_blocks(facts_from_config(CONFIG)) is None


def test_auto_passes_over_four_bits_for_blocks_and_takes_them_for_floats() -> None:
    short = device(next(mib for mib in range(100, 2000, 8) if _fits(mib, "w4a16")) + 8)
    assert budget(stored("F16"), short, LOAD, RUNS).precision == "w4a16"
    for blocks in ("Q3_K", "IQ4_XS", "Q8_0", "Q6_K"):
        with pytest.raises(DoesNotFitError) as caught:
            budget(stored(blocks), short, LOAD, RUNS)
        assert f"{blocks} blocks rounded again" in str(caught.value)
        assert budget(stored(blocks), short, replace(LOAD, precision="w4a16"), RUNS).precision == "w4a16"
    for runs in (RUNS, None):
        found = budget(stored("IQ4_XS"), device(8192), replace(LOAD, tensor="auto"), runs)
        assert (found.precision, found.rejected) == ("bfloat16", ())


@pytest.mark.parametrize(
    ("blocks", "precision"),
    [
        ("Q4_0", "w4a16"),
        ("Q4_1", "w4a16"),
        ("Q4_K", "w4a16"),
        ("Q5_0", "w8a16"),
        ("Q5_1", "w8a16"),
        ("Q8_0", "w8a16"),
        ("Q5_K", "w8a16"),
        ("Q6_K", "w8a16"),
    ],
)
def test_auto_takes_blocks_as_they_are_stored_however_much_memory_there_is(blocks: str, precision: str) -> None:
    facts = stored(blocks)
    assert block_bits(facts) == int(precision[1])
    short = next(mib for mib in range(100, 2000, 8) if _fits(mib, precision, facts))
    for mib in (short + 8, 8192):
        for runs in (RUNS, None):
            found = budget(facts, device(mib), LOAD, runs)
            assert (found.precision, found.rejected) == (precision, ())
            assert rounded_again(facts, found.precision) is None
    with pytest.raises(DoesNotFitError, match=f"precision {precision}, the smallest that auto may take"):
        budget(facts, device(short - 16), LOAD, RUNS)


def test_ranks_that_would_cut_a_block_hold_floats() -> None:
    # Two heads of 16 columns share a block.
    facts = stored("Q4_1", config={**CONFIG, "head_dim": 16, "num_key_value_heads": 16})
    found = budget(facts, device(8192), replace(LOAD, tensor=16), RUNS)
    assert found.precision == "bfloat16"
    (option,) = found.rejected
    assert option.option == "precision w4a16"
    assert budget(facts, device(8192), replace(LOAD, tensor=8), RUNS).precision == "w4a16"


def test_a_tensor_that_a_forged_report_leaves_out_is_sized_whole() -> None:
    facts = stored("Q4_1")
    assert facts.tensors is not None
    kept = {name: fact for name, fact in facts.tensors.items() if "layers.0.mlp.down_proj" not in name}
    forged = replace(facts, tensors=kept)
    assert budget(forged, device(8192), replace(LOAD, precision="w4a16"), RUNS).precision == "w4a16"
    assert held_codes(forged, "w4a16", ["model.layers.0.mlp.down_proj"], 4096) is None
    assert held_codes(forged, "w4a16", ["model.layers.1.mlp.down_proj"], 4096) is not None


def _fits(mib: int, precision: str, facts: ModelFacts | None = None) -> bool:
    try:
        budget(facts or stored("F16"), device(mib), replace(LOAD, precision=precision), RUNS)  # type: ignore[arg-type]
    except DoesNotFitError:
        return False
    return True


def test_what_a_second_rounding_costs_is_said() -> None:
    four, eight = (rounded_again(stored("IQ4_XS"), precision) for precision in ("w4a16", "w8a16"))
    assert "IQ4_XS" in str(four)
    assert "perplexity" in str(four)
    assert "%" in str(eight)
    assert rounded_again(stored("Q4_1"), "bfloat16") is None
    assert refused_under_auto(stored("Q4_1"), "w8a16") is None
    assert "name w4a16 to accept" in str(refused_under_auto(stored("Q6_K"), "w4a16"))
    assert as_stored(stored("Q4_1"), "w4a16") == "Q4_1 blocks"
    assert as_stored(stored("Q8_0"), "w8a16") == "Q8_0 blocks"
    assert as_stored(stored("Q4_K"), "w4a16") == "Q4_K blocks"
    assert as_stored(stored("Q6_K"), "w8a16") == "Q6_K blocks"
    for blocks, precision in (("Q4_1", "w8a16"), ("Q4_1", "bfloat16"), ("Q6_K", "w4a16"), ("F16", "w4a16")):
        assert as_stored(stored(blocks), precision) is None
    # Blocks of other bits are rounded again, whichever they are.
    assert "Q4_1" in str(rounded_again(stored("Q4_1"), "w8a16"))
    assert "Q8_0" in str(rounded_again(stored("Q8_0"), "w4a16"))
