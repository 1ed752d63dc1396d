"""`quantization_config`: what is read of three formats, and what is refused by field."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.api.errors import CheckpointError
from plimsoll.api.quantization import Quantization, essential, ignores, parse_quantization

AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
WEIGHTS: dict[str, Any] = {
    "num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32, "dynamic": False,
    "actorder": None, "block_structure": None, "observer": "minmax",
}  # fmt: skip


def compressed(
    weights: dict[str, Any] | None = None, group: dict[str, Any] | None = None, **top: Any
) -> dict[str, Any]:
    scheme = {"targets": ["Linear"], "input_activations": None, "weights": WEIGHTS | (weights or {})} | (group or {})
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "ignore": ["lm_head"], "config_groups": {"group_0": scheme},
    } | top  # fmt: skip


def parsed(config: dict[str, Any]) -> Quantization | None:
    return parse_quantization({"quantization_config": config})


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (AWQ, Quantization("awq", 4, 128, False)),
        (AWQ | {"version": "GEMM", "modules_to_not_convert": ["visual"]},
         Quantization("awq", 4, 128, False, ("visual",))),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, Quantization("awq", 4, 64, False)),
        (AWQ | {"group_size": -1}, Quantization("awq", 4, 0, False)),
        # As GPTQModel writes AWQ.
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "checkpoint_format": "gemm", "pack_dtype": "int32",
          "lm_head": False, "desc_act": False, "meta": {"quantizer": ["x"]}}, Quantization("awq", 4, 128, False)),
        (GPTQ, Quantization("gptq", 4, 128, True, zero_offset=1)),
        (GPTQ | {"checkpoint_format": "gptq_v2", "sym": False}, Quantization("gptq", 4, 128, False)),
        (GPTQ | {"bits": 8, "group_size": -1}, Quantization("gptq", 8, 0, True, zero_offset=1)),
        (GPTQ | {"desc_act": True, "group_size": -1}, Quantization("gptq", 4, 0, True, zero_offset=1)),
        (compressed(), Quantization("compressed-tensors", 4, 32, False, ("lm_head",))),
        (compressed({"symmetric": True, "actorder": "weight"}),
         Quantization("compressed-tensors", 4, 32, True, ("lm_head",))),
        (compressed({"num_bits": 8, "symmetric": True, "strategy": "channel", "group_size": None}),
         Quantization("compressed-tensors", 8, 0, True, ("lm_head",))),
        (compressed(group={"format": "pack-quantized"}, format="mixed-precision"),
         Quantization("compressed-tensors", 4, 32, False, ("lm_head",))),
    ],
)  # fmt: skip
def test_what_published_configurations_say(config: dict[str, Any], found: Quantization) -> None:
    assert parsed(config) == found
    assert parsed(essential(config)) == found


def test_a_checkpoint_of_floats_has_none() -> None:
    assert parse_quantization({}) is None
    assert parse_quantization({"quantization_config": None}) is None


def test_the_older_name_of_compressed_tensors_is_read() -> None:
    assert parse_quantization({"compression_config": compressed()}) == parsed(compressed())


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"quant_method": "bitsandbytes"}, "quant_method"),
        ({}, "quant_method"),
        (AWQ | {"bits": 3}, "bits"),
        (AWQ | {"bits": True}, "bits"),
        (AWQ | {"bits": 4.5}, "bits"),
        (AWQ | {"version": "gemv"}, "version"),
        (AWQ | {"backend": "llm-awq"}, "backend"),
        (AWQ | {"zero_point": False}, "zero_point"),
        (AWQ | {"group_size": 100}, "group_size"),
        (AWQ | {"group_size": 0}, "group_size"),
        (AWQ | {"group_size": "128"}, "group_size"),
        (AWQ | {"modules_to_not_convert": "visual"}, "modules_to_not_convert"),
        (AWQ | {"lm_head": True}, "lm_head"),
        (AWQ | {"pack_dtype": "int16"}, "pack_dtype"),
        (GPTQ | {"desc_act": True}, "desc_act"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format"),
        (GPTQ | {"is_marlin_format": True}, "checkpoint_format"),
        (GPTQ | {"bits": 2}, "bits"),
        (GPTQ | {"bits": 8, "sym": False}, "sym"),
        (GPTQ | {"sym": 1}, "sym"),
        (GPTQ | {"dynamic": {"+:mlp": {"bits": 8}}}, "dynamic"), (GPTQ | {"dynamic": {"-:(": {}}}, "dynamic"),
        (GPTQ | {"dynamic": {"mlp": {"group_size": 32}}}, "dynamic"), (GPTQ | {"dynamic": ["-:mlp"]}, "dynamic"),
        (compressed(format="int-quantized"), "format"),
        (compressed(group={"format": "float-quantized"}), "config_groups.group_0.format"),
        (compressed(config_groups={}), "config_groups"),
        (compressed(config_groups={"group_0": {"weights": None}}), "config_groups.group_0.weights"),
        (compressed(config_groups={f"group_{bits}": {"weights": WEIGHTS | {"num_bits": bits, "symmetric": True}}
                                   for bits in (4, 8)}), "config_groups"),
        (compressed(group={"input_activations": {"num_bits": 8}}), "config_groups.group_0.input_activations"),
        (compressed({"num_bits": 2}), "config_groups.group_0.weights.num_bits"),
        (compressed({"type": "float"}), "config_groups.group_0.weights.type"),
        (compressed({"dynamic": True}), "config_groups.group_0.weights.dynamic"),
        (compressed({"actorder": "group"}), "config_groups.group_0.weights.actorder"),
        (compressed({"strategy": "tensor"}), "config_groups.group_0.weights.strategy"),
        (compressed({"group_size": None}), "config_groups.group_0.weights.group_size"),
        (compressed({"num_bits": 8}), "config_groups.group_0.weights.symmetric"),
        (compressed({"symmetric": "yes"}), "config_groups.group_0.weights.symmetric"),
        (compressed(ignore="lm_head"), "ignore"),
        (compressed(transform_config={"config_groups": {"u": {}}}), "transform_config"),
        (compressed(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"),
        (compressed(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused_by_field_with_a_way_out(config: dict[str, Any], field: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        parsed(config)
    assert caught.value.field == f"quantization_config.{field}"
    assert caught.value.fix
    assert len(str(caught.value)) < 600


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
    | st.sampled_from(["awq", "gptq", "gemm", "pack-quantized", "group", "channel", 4, 8, 128, -1]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["group_0", "weights", "format", *WEIGHTS]), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([AWQ, GPTQ, compressed()]),
    st.dictionaries(st.sampled_from([*AWQ, *GPTQ, *compressed()]), VALUE, max_size=4),
)
def test_no_configuration_gets_more_than_a_refusal(base: dict[str, Any], change: dict[str, Any]) -> None:
    field = None
    try:
        found = parsed(base | change)
    except CheckpointError as error:
        found, field = None, error.field
    assert field or (found is not None and found.bits in (4, 8) and found.group_size % 16 == 0)


def test_modules_that_gptq_leaves_whole_are_read() -> None:
    dynamic = {r"-:model\.layers\.1\..*": {}, r"+:.*\.mlp\..*": {"bits": 4}, "-:.*down_proj": {}}
    said = parse_quantization({"quantization_config": GPTQ | {"dynamic": dynamic}})
    assert said is not None
    assert said.ignored == (r"re:model\.layers\.1\..*", "re:.*down_proj")
    for module, whole in (("model.layers.1.mlp.up_proj", True), ("model.layers.10.mlp.up_proj", False),
                          ("model.layers.0.mlp.down_proj", True)):  # fmt: skip
        assert any(ignores(pattern, module) for pattern in said.ignored) == whole
    assert ignores("lm_head", "lm_head")
    assert not ignores("re:(", "x")
