"""The report of an inspection: small, whole, and never believed when it is damaged."""

import base64
import json
import random
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.api.budget import Load, budget
from plimsoll.api.device import DeviceFacts, TableFacts
from plimsoll.api.errors import CheckpointError, PlimsollError
from plimsoll.api.facts import facts_from_config
from plimsoll.api.inspection import MAX_BYTES, Inspection
from plimsoll.api.layer_tensors import expected_tensors
from plimsoll.api.model import ModelFacts, TensorFact
from plimsoll.api.tensor_table import collapse, expand
from plimsoll.checkpoint.open import open_checkpoint
from tests.support.checkpoints import ARCHITECTURES, make_checkpoint, make_gguf, make_model

GIB = 1 << 30
#: Bytes of 256 elements, as llama.cpp stores them.
BLOCKS = {"Q4_K": 144, "Q5_K": 176, "Q6_K": 210, "F32": 1024}

#: Configurations as published: 80 layers, sliding windows by layer, scaled positions, the packed InternLM2.
PUBLISHED: dict[str, dict[str, Any]] = {
    "llama-3.1-70b": {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 8192, "intermediate_size": 28672,
        "num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 80, "vocab_size": 128256,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "torch_dtype": "bfloat16",
        "rope_scaling": {
            "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu",
    },
    "qwen2.5-72b": {
        "architectures": ["Qwen2ForCausalLM"], "hidden_size": 8192, "intermediate_size": 29568,
        "num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 80, "vocab_size": 152064,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "torch_dtype": "bfloat16",
        "sliding_window": 131072, "max_window_layers": 40, "use_sliding_window": True, "hidden_act": "silu",
        "bos_token_id": 151643, "eos_token_id": 151645,
    },
    "qwen3-32b": {
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 5120, "intermediate_size": 25600, "head_dim": 128,
        "num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 64, "vocab_size": 151936,
        "max_position_embeddings": 40960, "rms_norm_eps": 1e-06, "rope_theta": 1000000, "torch_dtype": "bfloat16",
        "tie_word_embeddings": False, "hidden_act": "silu",
    },
    "mistral-7b": {
        "architectures": ["MistralForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
        "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32, "vocab_size": 32000,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-05, "sliding_window": 4096, "torch_dtype": "bfloat16",
    },
    "internlm2.5-20b": {
        "architectures": ["InternLM2ForCausalLM"], "hidden_size": 6144, "intermediate_size": 16384, "bias": False,
        "num_attention_heads": 48, "num_key_value_heads": 8, "num_hidden_layers": 48, "vocab_size": 92544,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-05, "rope_theta": 50000000,
        "rope_scaling": {"factor": 2.5, "type": "dynamic"}, "torch_dtype": "bfloat16",
    },
}  # fmt: skip


def facts_of(config: dict[str, Any], dtypes: Any = lambda name, shape: "BF16") -> ModelFacts:
    shapes = expected_tensors(facts_from_config(config))
    tensors = {}
    for name, shape in shapes.items():
        dtype = dtypes(name, shape)
        elements = shape[0] * (shape[1] if len(shape) > 1 else 1)
        tensors[name] = TensorFact(name, shape, dtype, elements * BLOCKS.get(dtype, 512) // 256)
    return facts_from_config(config, tensors)


def inspection(facts: ModelFacts) -> Inspection:
    return Inspection("sha256:" + "1f" * 32, "c0ffee" * 6 + "beef", 10**11 + 7, "", facts)


def sized(facts: ModelFacts, device: DeviceFacts, load: Load) -> object:
    """The budget, or the words why there is none."""
    try:
        return budget(facts, device, load)
    except PlimsollError as error:
        return str(error)


def same_after_a_round_trip(facts: ModelFacts) -> bytes:
    found = inspection(facts)
    packed = found.encode()
    assert len(packed) <= MAX_BYTES
    assert packed.isascii()
    back = Inspection.decode(packed)
    assert back == found
    assert back.facts.tensors == facts.tensors
    for total in (16 * GIB, 80 * GIB, 640 * GIB):
        for table in (TableFacts(), TableFacts(row_tile=32, activation_bytes=4, scratch_bytes=1 << 20)):
            for tensor in (1, "auto"):
                device, load = DeviceFacts("cuda", total, table), Load(tensor=tensor, max_length=128)  # type: ignore[arg-type]
                assert sized(back.facts, device, load) == sized(facts, device, load)
    return packed


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_facts_of_every_architecture_survive(tmp_path: Path, architecture: str) -> None:
    facts = open_checkpoint(make_checkpoint(tmp_path / "model", architecture, tokenizer=False)).facts
    same_after_a_round_trip(facts)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_fit_with_room_to_spare(name: str) -> None:
    assert len(same_after_a_round_trip(facts_of(PUBLISHED[name]))) < 1500


@pytest.mark.parametrize("name", ["llama-3.1-70b", "qwen3-32b"])
def test_mixed_block_types_of_a_large_gguf_fit(name: str) -> None:
    # As Q4_K_M has it: some layers' values and down projections keep more bits.
    layers = PUBLISHED[name]["num_hidden_layers"]

    def dtype(tensor: str, shape: tuple[int, ...]) -> str:
        if len(shape) == 1:
            return "F32"
        number = int(tensor.split(".")[2]) if ".layers." in tensor else -1
        more = number < layers // 8 or number >= 7 * layers // 8 or (number - layers // 8) % 3 == 2
        if tensor == "lm_head.weight" or (more and ("v_proj" in tensor or "down_proj" in tensor)):
            return "Q6_K"
        return "Q4_K"

    facts = facts_of(PUBLISHED[name], dtype)
    assert {fact.dtype for fact in (facts.tensors or {}).values()} == {"F32", "Q4_K", "Q6_K"}
    assert len(same_after_a_round_trip(facts)) < 2048


def test_a_gguf_file_survives_with_its_block_types(tmp_path: Path) -> None:
    model = make_model("Qwen3ForCausalLM", num_hidden_layers=3)
    facts = open_checkpoint(make_gguf(tmp_path / "m.gguf", model, block_type="Q8_0")).facts
    assert "Q8_0" in {fact.dtype for fact in (facts.tensors or {}).values()}
    same_after_a_round_trip(facts)


def quantized_facts(config: dict[str, Any], said: dict[str, Any], extra: Any) -> ModelFacts:
    """4 bits in groups of 128 with fp16 scales, and `extra(rows, columns)` bytes beside them."""
    shapes = expected_tensors(facts_from_config(config))
    tensors = {}
    for name, shape in shapes.items():
        if ".layers." not in name or len(shape) == 1:
            tensors[name] = TensorFact(name, shape, "BF16", 2 * shape[0] * (shape[1] if len(shape) > 1 else 1))
            continue
        rows, columns = shape
        tensors[name] = TensorFact(name, shape, "W4", rows * columns // 2 + rows * columns // 64 + extra(rows, columns))
    return facts_from_config(config | {"quantization_config": said}, tensors)


@pytest.mark.parametrize("name", PUBLISHED)
def test_quantized_models_of_every_format_fit(name: str) -> None:
    layers = PUBLISHED[name]["num_hidden_layers"]
    awq = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True, "meta": "x" * 9999}
    weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 128}
    compressed = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": {"weights": weights}},
        "ignore": ["lm_head", *(f"model.layers.{layer}.mlp.gate" for layer in range(layers))],
    }  # fmt: skip
    for said, extra in (
        (awq, lambda rows, columns: rows * columns // 256),
        (gptq, lambda rows, columns: rows * columns // 256 + 4 * columns),
        (compressed, lambda rows, columns: rows * columns // 256 + 16),
    ):
        facts = quantized_facts(PUBLISHED[name], said, extra)
        assert facts.quantization is not None
        assert len(same_after_a_round_trip(facts)) < 2048


def test_end_tokens_of_the_generation_configuration_survive() -> None:
    facts = replace(facts_of(PUBLISHED["mistral-7b"]), eos_token_ids=(7, 2, 9))
    assert Inspection.decode(inspection(facts).encode()).facts.eos_token_ids == (7, 2, 9)


def test_a_configuration_alone_survives() -> None:
    same_after_a_round_trip(facts_from_config(PUBLISHED["qwen2.5-72b"]))


def test_what_does_not_fit_is_said_in_words() -> None:
    noise = random.Random(0)
    config = PUBLISHED["llama-3.1-70b"] | {"num_hidden_layers": 1000}
    facts = facts_of(config, lambda name, shape: noise.choice(("Q4_K", "Q5_K", "Q6_K", "F32")))
    with pytest.raises(CheckpointError, match="last words hold 4096"):
        inspection(facts).encode()


def test_a_failures_words_are_no_report() -> None:
    words = "s3://bucket/x: there is no such bucket"
    assert not Inspection.is_report(words)
    with pytest.raises(CheckpointError, match="not the report"):
        Inspection.decode(words)
    assert Inspection.is_report(inspection(facts_of(PUBLISHED["mistral-7b"])).encode())


def _forged(content: object) -> bytes:
    return b"plimsoll-inspection/1 " + base64.b85encode(zlib.compress(json.dumps(content).encode()))


def test_damaged_and_forged_reports_are_refused() -> None:
    packed = inspection(facts_of(PUBLISHED["mistral-7b"])).encode()
    for cut in range(22, len(packed), 37):
        with pytest.raises(CheckpointError):
            Inspection.decode(packed[:cut])
    bomb = b"plimsoll-inspection/1 " + base64.b85encode(zlib.compress(b" " * (1 << 24)))
    good = json.loads(zlib.decompress(base64.b85decode(packed[22:])))
    wide = {"rates": {"BF16": [2, 1]}, "rows": [["a.*.b", [1], {"BF16": "0-99999999"}]]}
    for wrong in (
        bomb, _forged([]), _forged({}), _forged(good | {"bytes": "7"}), _forged(good | {"path": None}),
        _forged(good | {"config": {}}), _forged(good | {"tensors": wide}), _forged(good | {"ends": [{}]}),
        _forged(good | {"tensors": {"rates": {"BF16": [1, 3]}, "rows": [["a", [1], {"BF16": ""}]]}}),
        _forged(good | {"tensors": {"rates": {}, "rows": [["a", [1], {"BF16": ""}]]}}),
    ):  # fmt: skip
        with pytest.raises(CheckpointError):
            Inspection.decode(wrong)


_names = st.builds(
    lambda head, layer, tail: f"{head}{layer}{tail}",
    st.sampled_from(["", "model.layers.", "a.1.", "x"]), st.sampled_from(["", "0", "7", "007", "12"]),
    st.sampled_from([".weight", ".0.bias", "", "y"]),
)  # fmt: skip


@given(
    st.dictionaries(
        _names, st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from(["BF16", "F32", "W4"])), max_size=30
    ),
    st.integers(0, 3),
)
def test_any_table_of_tensors_is_expanded_to_itself(entries: dict[str, tuple[list[int], str]], extra: int) -> None:
    tensors = {}
    for name, (shape, dtype) in entries.items():
        elements = 1
        for size in shape:
            elements *= size
        tensors[name] = TensorFact(name, tuple(shape), dtype, elements * {"BF16": 2, "F32": 4}.get(dtype, 1))
        if dtype == "W4" and elements:
            tensors[name] = replace(tensors[name], nbytes=elements + extra * len(name))
    assert expand(json.loads(json.dumps(collapse(tensors)))) == tensors


@pytest.mark.parametrize("pattern", ["a" * 1100 + ".*.b", "a.*.*.b", "*" * 900])
def test_a_name_that_would_expand_to_gigabytes_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="a name that no reader makes"):
        expand({"rates": {"F": [1, 1]}, "rows": [[pattern, [1], {"F": "0-3"}]]})


def test_what_caches_were_measured_to_cost_survives() -> None:
    facts = replace(facts_of(PUBLISHED["mistral-7b"]), measured_caches={"int8": 0.00012345678901234, "int4": 1e18})
    found = Inspection("sha256:0", "r", 7, "", facts)
    assert Inspection.decode(found.encode()) == found
