"""GGUF's blocks of one scale as they are stored: the values of the file, at the file's own size."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as BlockType
from gguf.quants import quantize

from plimsoll.api.device import DeviceFacts
from plimsoll.api.errors import CheckpointError
from plimsoll.api.precision import Codes, Precision, held_codes
from plimsoll.api.sizes import weight_bytes
from plimsoll.checkpoint import open_checkpoint
from plimsoll.runtime.kernels.table import Kernels
from plimsoll.runtime.models.loader import load_decoder
from tests.support.checkpoints import VOCAB_SIZE, make_gguf, make_model
from tests.support.paging import prompt_logprobs
from tests.support.tables import bfloat16_tables, float32_tables, table_name

SOURCE = random.Random(3)
PROMPTS = [[SOURCE.randrange(VOCAB_SIZE) for _ in range(length)] for length in (21, 1, 40)]
PRECISION: dict[str, Precision] = {"Q4_0": "w4a16", "Q4_1": "w4a16", "Q8_0": "w8a16"}
UP = "model.layers.0.mlp.up_proj"


def make(
    path: Path, block_type: str, architecture: str = "LlamaForCausalLM", **replaced: tuple[str, tuple[int, int]]
) -> Path:
    """A model of two layers. Args: replaced: of layer 0, tensors of another type: (type, shape)."""
    model = make_model(architecture, hidden_size=96, intermediate_size=160, num_hidden_layers=2,
                       num_attention_heads=3, num_key_value_heads=3, head_dim=32)  # fmt: skip
    rng, values = np.random.default_rng(3), {}
    for name, (kind, shape) in replaced.items():
        weights = rng.standard_normal(shape).astype(np.float32) * 0.05
        # A block of one value has a scale of nothing.
        weights[5, :32] = 0.03
        packed = weights if kind == "F32" else quantize(weights, BlockType[kind])
        values[f"blk.0.{name}.weight"] = packed, BlockType[kind]
    return make_gguf(path, model, block_type=block_type, replace=values)


def check(path: Path, precision: Precision, kernels: Kernels) -> Any:
    """The answers of the floats that the blocks stand for, in the bytes foretold; gives the decoder."""
    checkpoint = open_checkpoint(path)
    wanted = load_decoder(checkpoint, checkpoint.facts, kernels, torch.float32)
    found = load_decoder(checkpoint, checkpoint.facts, kernels, torch.float32, precision=precision)
    for ours, theirs in zip(prompt_logprobs(found, PROMPTS), prompt_logprobs(wanted, PROMPTS), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    return found


@pytest.mark.parametrize("kernels", float32_tables(), ids=table_name)
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM"])
@pytest.mark.parametrize("block_type", PRECISION)
def test_answers_are_those_of_the_files_values(
    tmp_path: Path, block_type: str, architecture: str, kernels: Kernels
) -> None:
    check(make(tmp_path / "m.gguf", block_type, architecture), PRECISION[block_type], kernels)


@pytest.mark.parametrize("kernels", float32_tables(), ids=table_name)
def test_kinds_of_blocks_may_differ_from_matrix_to_matrix(tmp_path: Path, kernels: Kernels) -> None:
    path = make(
        tmp_path / "m.gguf", "Q4_0", attn_v=("Q4_1", (96, 96)), ffn_down=("Q8_0", (96, 160)),
        ffn_up=("Q5_1", (160, 96)), attn_output=("F32", (96, 96)),
    )  # fmt: skip
    check(path, "w4a16", kernels)
    facts = open_checkpoint(path).facts

    def held(layer: int, *roles: str) -> Codes | None:
        return held_codes(facts, "w4a16", [f"model.layers.{layer}.{role}" for role in roles], 96)

    assert held(0, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj") == Codes(4, 32, True, True)
    assert held(0, "mlp.down_proj") == Codes(8, 32, True)
    assert held(0, "mlp.gate_proj", "mlp.up_proj") is None
    assert held(0, "self_attn.o_proj") is None
    assert held(1, "mlp.gate_proj", "mlp.up_proj") == Codes(4, 32, True)


@pytest.mark.parametrize("kernels", bfloat16_tables(), ids=table_name)
def test_held_bytes_are_those_foretold(tmp_path: Path, kernels: Kernels) -> None:
    device = DeviceFacts("cpu", 1 << 30, kernels.facts)
    mixed = make(tmp_path / "mixed.gguf", "Q4_0", attn_v=("Q4_1", (96, 96)), ffn_down=("Q8_0", (96, 160)))
    for path in (mixed, *(make(tmp_path / f"{kind}.gguf", kind) for kind in PRECISION)):
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
    checkpoint = open_checkpoint(make(tmp_path / "m.gguf", block_type, ffn_up=(block_type, (160, 96))))
    for module in (UP, "model.layers.0.self_attn.q_proj"):
        for rows, columns in ((None, None), ((3, 70), (32, 96)), ((0, 0), None)):
            values = checkpoint.read(f"{module}.weight", rows, columns).data
            np.testing.assert_array_equal(checkpoint.read_quantized(module, rows, columns).dequantize(), values)
    with pytest.raises(ValueError, match="cut a block"):
        checkpoint.read_quantized(UP, None, (0, 40))
    with pytest.raises(KeyError):
        checkpoint.read_quantized("model.layers.0.input_layernorm")


@pytest.mark.parametrize("place", [0, 2])
def test_a_scale_or_minimum_that_is_no_number_is_named(tmp_path: Path, place: int) -> None:
    packed = quantize(np.ones((160, 96), dtype=np.float32), BlockType.Q4_1)
    packed[7, place : place + 2] = (0xFF, 0x7F)
    model = make_model("LlamaForCausalLM", hidden_size=96, intermediate_size=160)
    path = make_gguf(
        tmp_path / "m.gguf", model, block_type="Q4_1", replace={"blk.0.ffn_up.weight": (packed, BlockType.Q4_1)}
    )
    with pytest.raises(CheckpointError, match="no number") as caught:
        open_checkpoint(path).read_quantized(UP)
    assert "blk.0.ffn_up.weight" in str(caught.value)
