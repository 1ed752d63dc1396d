"""GGUF's blocks as they are stored: the values of the file, multiplied as they are."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as BlockType

from plimsoll.api.blocks import BLOCKS
from plimsoll.api.device import DeviceFacts
from plimsoll.api.errors import CheckpointError
from plimsoll.api.precision import Codes, Precision, embedding_codes, head_codes, held_codes
from plimsoll.api.sizes import weight_bytes
from plimsoll.checkpoint import open_checkpoint
from plimsoll.runtime.kernels.table import Kernels
from plimsoll.runtime.models.loader import load_decoder
from tests.support.checkpoints import VOCAB_SIZE, make_gguf, make_model
from tests.support.k_blocks import KINDS, quantize
from tests.support.paging import prompt_logprobs
from tests.support.tables import bfloat16_tables, float32_tables, table_name

SOURCE = random.Random(3)
PROMPTS = [[SOURCE.randrange(VOCAB_SIZE) for _ in range(length)] for length in (21, 1, 40)]
PRECISION: dict[str, Precision] = {kind: "w4a16" if block.bits == 4 else "w8a16" for kind, block in BLOCKS.items()}
UP = "model.layers.0.mlp.up_proj"
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
NARROW = {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 3, "num_key_value_heads": 3,
          "head_dim": 32}  # fmt: skip


def make(
    path: Path, block_type: str, architecture: str = "LlamaForCausalLM", *, tied: bool = False, **replaced: str
) -> Path:
    """A model of two layers. Args: replaced: of layer 0, and `token_embd`, tensors of another type."""
    model = make_model(architecture, num_hidden_layers=2, tie_word_embeddings=tied,
                       **(WIDE if block_type in KINDS else NARROW))  # fmt: skip
    rng, values, config = np.random.default_rng(3), {}, model.config
    hidden, inner, keys = config.hidden_size, config.intermediate_size, config.num_key_value_heads * config.head_dim
    shapes = {"attn_v": (keys, hidden), "attn_k": (keys, hidden), "attn_output": (hidden, hidden),
              "ffn_up": (inner, hidden), "ffn_down": (hidden, inner), "token_embd": (VOCAB_SIZE, hidden)}  # fmt: skip
    for name, kind in replaced.items():
        weights = rng.standard_normal(shapes[name]).astype(np.float32) * 0.05
        # A block of one value has a scale of nothing.
        weights[5, :32] = 0.03
        packed = weights if kind == "F32" else quantize(weights, kind)
        stored = f"{name}.weight" if name == "token_embd" else f"blk.0.{name}.weight"
        values[stored] = packed, BlockType[kind]
    return make_gguf(path, model, block_type=block_type, replace=values)


def check(path: Path, precision: Precision, kernels: Kernels) -> Any:
    """The answers of the floats that the blocks stand for, in the bytes foretold; gives the decoder."""
    checkpoint = open_checkpoint(path)
    wanted = load_decoder(checkpoint, checkpoint.facts, kernels, torch.float32)
    found = load_decoder(checkpoint, checkpoint.facts, kernels, torch.float32, precision=precision)
    # Sums of 256 and 512 columns are large beside those of 96.
    most = 1e-3 if checkpoint.facts.hidden_size > 96 else 1e-4
    for ours, theirs in zip(prompt_logprobs(found, PROMPTS), prompt_logprobs(wanted, PROMPTS), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=most)
    return found


@pytest.mark.parametrize("kernels", float32_tables(), ids=table_name)
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM"])
@pytest.mark.parametrize("block_type", PRECISION)
def test_answers_are_those_of_the_files_values(
    tmp_path: Path, block_type: str, architecture: str, kernels: Kernels
) -> None:
    check(make(tmp_path / "m.gguf", block_type, architecture), PRECISION[block_type], kernels)


def held(facts: Any, precision: Precision, layer: int, *roles: str) -> Codes | None:
    return held_codes(facts, precision, [f"model.layers.{layer}.{role}" for role in roles], facts.hidden_size)


QKV = "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"
GATE_UP = "mlp.gate_proj", "mlp.up_proj"


@pytest.mark.parametrize("kernels", float32_tables(), ids=table_name)
def test_kinds_of_blocks_may_differ_from_matrix_to_matrix(tmp_path: Path, kernels: Kernels) -> None:
    path = make(tmp_path / "m.gguf", "Q4_0", attn_v="Q4_1", ffn_down="Q8_0", ffn_up="Q5_1", attn_output="F32")
    check(path, "w4a16", kernels)
    facts = open_checkpoint(path).facts
    assert held(facts, "w4a16", 0, *QKV) == Codes(4, 32, True, True)
    assert held(facts, "w4a16", 0, "mlp.down_proj") == Codes(8, 32, True)
    assert held(facts, "w4a16", 0, *GATE_UP) == Codes(8, 32, True, True)
    assert held(facts, "w4a16", 0, "self_attn.o_proj") is None
    assert held(facts, "w4a16", 1, *GATE_UP) == Codes(4, 32, True)


@pytest.mark.parametrize("kernels", float32_tables(), ids=table_name)
@pytest.mark.parametrize("tied", [True, False])
def test_a_file_of_4_bits_with_some_tensors_of_6_keeps_each_of_them(
    tmp_path: Path, kernels: Kernels, tied: bool
) -> None:
    """As llama.cpp's Q4_K_M is: values, a part of down and the head are Q6_K."""
    path = make(
        tmp_path / "m.gguf", "Q4_K", tied=tied, attn_v="Q6_K", ffn_down="Q6_K", ffn_up="Q5_K", token_embd="Q6_K"
    )
    check(path, "w4a16", kernels)
    facts = open_checkpoint(path).facts
    assert held(facts, "w4a16", 0, *QKV) == Codes(8, 16, True, True, True)
    assert held(facts, "w4a16", 0, *GATE_UP) == Codes(8, 32, True, True, True)
    assert held(facts, "w4a16", 0, "mlp.down_proj") == Codes(8, 16, True, False, True)
    assert held(facts, "w4a16", 1, *QKV) == Codes(4, 32, True, True, True)
    if kernels.facts.head_group is not None:
        assert embedding_codes(facts, "w4a16", kernels.facts) == Codes(8, 16, True, False, True)
        assert head_codes(facts, "w4a16", kernels.facts) == (
            Codes(8, 16, True, False, True) if tied else Codes(4, 32, True, True, True)
        )


def test_where_another_precision_is_named_matrices_of_its_bits_are_still_held_as_stored(tmp_path: Path) -> None:
    path = make(tmp_path / "m.gguf", "Q5_K", attn_output="Q4_K", ffn_down="Q6_K")
    facts = open_checkpoint(path).facts
    assert held(facts, "w4a16", 0, "self_attn.o_proj") == Codes(4, 32, True, True, True)
    for roles in (QKV, ("mlp.down_proj",)):
        rounded = held(facts, "w4a16", 0, *roles)
        assert rounded is not None
        assert not rounded.stored


@pytest.mark.parametrize("kernels", bfloat16_tables(), ids=table_name)
def test_held_bytes_are_those_foretold(tmp_path: Path, kernels: Kernels) -> None:
    device = DeviceFacts("cpu", 1 << 30, kernels.facts)
    paths = [make(tmp_path / f"{kind}.gguf", kind) for kind in PRECISION]
    paths.append(make(tmp_path / "mixed.gguf", "Q4_0", attn_v="Q4_1", ffn_down="Q8_0", ffn_up="Q5_0"))
    paths.append(make(tmp_path / "k_m.gguf", "Q4_K", tied=True, attn_v="Q6_K", ffn_down="Q6_K", token_embd="Q6_K"))
    for path in paths:
        checkpoint = open_checkpoint(path)
        for precision in ("w4a16", "w8a16", "bfloat16"):
            seen: list[tuple[int, int]] = []
            decoder = load_decoder(
                checkpoint, checkpoint.facts, kernels, torch.bfloat16, precision=precision,
                on_progress=lambda done, total, seen=seen: seen.append((done, total)),
            )  # fmt: skip
            assert decoder.weight_bytes == weight_bytes(checkpoint.facts, precision, device), (path.name, precision)
            assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("block_type", PRECISION)
def test_codes_are_read_in_any_rows_and_whole_blocks(tmp_path: Path, block_type: str) -> None:
    size = BLOCKS[block_type].size
    checkpoint = open_checkpoint(make(tmp_path / "m.gguf", block_type, ffn_up=block_type, ffn_down=block_type))
    for module in (UP, "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"):
        columns = (size, 2 * size) if module.endswith("down_proj") else (0, size)
        for rows, run in ((None, None), ((3, 70), columns), ((0, 0), None)):
            values = checkpoint.read(f"{module}.weight", rows, run).data
            np.testing.assert_array_equal(checkpoint.read_quantized(module, rows, run).dequantize(), values)
    with pytest.raises(ValueError, match=f"cut a block of {size}"):
        checkpoint.read_quantized(UP, None, (0, 40))
    with pytest.raises(KeyError):
        checkpoint.read_quantized("model.layers.0.input_layernorm")


@pytest.mark.parametrize(
    ("block_type", "place"),
    [("Q4_1", 0), ("Q4_1", 2), ("Q5_0", 0), ("Q5_1", 2), ("Q4_K", 0), ("Q5_K", 2), ("Q6_K", 208)],
)
def test_a_scale_or_minimum_that_is_no_number_is_named(tmp_path: Path, block_type: str, place: int) -> None:
    shape = (512, 256) if block_type in KINDS else (160, 96)
    packed = quantize(np.ones(shape, dtype=np.float32), block_type)
    packed[7, place : place + 2] = (0xFF, 0x7F)
    model = make_model("LlamaForCausalLM", **(WIDE if block_type in KINDS else NARROW))
    path = make_gguf(
        tmp_path / "m.gguf",
        model,
        block_type=block_type,
        replace={"blk.0.ffn_up.weight": (packed, BlockType[block_type])},
    )
    with pytest.raises(CheckpointError, match="no number") as caught:
        open_checkpoint(path).read_quantized(UP)
    assert "blk.0.ffn_up.weight" in str(caught.value)
