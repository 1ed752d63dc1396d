"""Quantized checkpoints as they are served: the same answers as the floats they stand for, in the bytes foretold."""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as BlockType
from gguf.quants import dequantize as dequantize_blocks
from gguf.quants import quantize as quantize_blocks
from safetensors.numpy import load_file, save_file
from torch import Tensor

from plimsoll.api.device import HEAD_GROUP, DeviceFacts
from plimsoll.api.errors import CheckpointError, SpecError
from plimsoll.api.precision import Precision
from plimsoll.api.quantization import Quantization
from plimsoll.api.sizes import weight_bytes
from plimsoll.checkpoint import open_checkpoint
from plimsoll.runtime.kernels.quantized import dequantize
from plimsoll.runtime.kernels.table import Kernels
from plimsoll.runtime.models import loader
from plimsoll.runtime.models.decoder import Decoder
from plimsoll.runtime.models.loader import load_decoder
from plimsoll.runtime.models.rounding import round_to_nearest
from tests.support import quantized
from tests.support.checkpoints import ARCHITECTURES, VOCAB_SIZE, make_checkpoint
from tests.support.paging import prompt_logprobs
from tests.support.tables import bfloat16_tables, float32_tables, table_name

SOURCE = random.Random(3)
PROMPTS = [[SOURCE.randrange(VOCAB_SIZE) for _ in range(length)] for length in (21, 1, 40)]
TABLES = float32_tables()
PRECISION: dict[int, Precision] = {4: "w4a16", 8: "w8a16"}
Made = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("quantized")

    @cache
    def make(form: str, architecture: str, whole: tuple[str, ...], tied: bool) -> tuple[Path, Path]:
        folder = root / f"{form}-{architecture}-{'+'.join(whole)}-{tied}"
        # 144 rows of queries, keys and values: no multiple of the native table's panels.
        return quantized.make_quantized(
            folder, quantized.ALL[form], architecture, whole=whole, tokenizer=False, hidden_size=96, head_dim=8,
            intermediate_size=160, num_attention_heads=12, num_key_value_heads=3,
            tie_word_embeddings=tied,
        )  # fmt: skip

    return lambda form, architecture, whole=(), tied=False: make(form, architecture, whole, tied)


def load(folder: Path, kernels: Kernels, precision: Precision | None = None) -> Decoder:
    checkpoint = open_checkpoint(folder)
    return load_decoder(checkpoint, checkpoint.facts, kernels, torch.float32, precision=precision)


def assert_close(found: list[Tensor], wanted: list[Tensor]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kernels", TABLES, ids=table_name)
@pytest.mark.parametrize("form", quantized.ALL)
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "InternLM2ForCausalLM"])
def test_codes_answer_as_the_floats_they_stand_for(made: Made, architecture: str, form: str, kernels: Kernels) -> None:
    folder, floats = made(form, architecture)
    wanted = prompt_logprobs(load(floats, kernels), PROMPTS)
    assert_close(prompt_logprobs(load(folder, kernels, PRECISION[quantized.ALL[form].bits]), PROMPTS), wanted)


@pytest.mark.parametrize("kernels", TABLES, ids=table_name)
@pytest.mark.parametrize("architecture", ["MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def test_so_does_every_architecture(made: Made, architecture: str, kernels: Kernels) -> None:
    folder, floats = made("awq", architecture)
    assert_close(
        prompt_logprobs(load(folder, kernels, "w4a16"), PROMPTS), prompt_logprobs(load(floats, kernels), PROMPTS)
    )


@pytest.mark.parametrize("form", ["awq", "ct-8", "gptq-v2"])
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "InternLM2ForCausalLM"])
def test_codes_made_floats_again_are_the_floats(made: Made, architecture: str, form: str) -> None:
    folder, floats = made(form, architecture)
    found, wanted = load(folder, TABLES[0]), load(floats, TABLES[0])
    for ours, theirs in zip(found.layers, wanted.layers, strict=True):
        assert torch.equal(ours.qkv, theirs.qkv)
        assert torch.equal(ours.gate_up, theirs.gate_up)
        assert torch.equal(ours.down, theirs.down)


@pytest.mark.parametrize("kernels", bfloat16_tables(), ids=table_name)
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_becomes_codes_where_the_table_says_so_and_linear_weights_are(
    made: Made, tied: bool, kernels: Kernels
) -> None:
    checkpoint = open_checkpoint(made("awq", "LlamaForCausalLM", (), tied)[1])
    facts, coded = checkpoint.facts, kernels.facts.head_group is not None
    held = {
        precision: load_decoder(checkpoint, facts, kernels, torch.bfloat16, precision=precision)
        for precision in ("w4a16", "w8a16", "bfloat16")
    }
    size = VOCAB_SIZE * facts.hidden_size
    for precision, decoder in held.items():
        assert (decoder.head is decoder.embedding) == tied
        narrow = coded and precision != "bfloat16"
        rows = -(-VOCAB_SIZE // kernels.facts.row_tile) * kernels.facts.row_tile
        assert decoder.head.nbytes == rows * facts.hidden_size * (9 if narrow else 16) // 8
        if not tied:
            assert decoder.embedding.nbytes >= 2 * size


def test_a_head_as_most_files_of_4_bits_have_it_loses_nothing() -> None:
    head = torch.randn(40, 96, generator=torch.Generator().manual_seed(0)) * 0.02
    head[7, 32:64] = 0
    stored = torch.from_numpy(dequantize_blocks(quantize_blocks(head.numpy(), BlockType.Q8_0), BlockType.Q8_0))
    matrix = round_to_nearest(stored, 8, HEAD_GROUP, "output.weight")
    assert torch.equal(dequantize(matrix, torch.float32), stored)


@pytest.mark.parametrize("kernels", TABLES, ids=table_name)
def test_modules_kept_whole_beside_codes(made: Made, kernels: Kernels) -> None:
    folder, floats = made("awq", "LlamaForCausalLM", ("layers.0.mlp", "v_proj"))
    decoder = load(folder, kernels, "w4a16")
    assert_close(prompt_logprobs(decoder, PROMPTS), prompt_logprobs(load(floats, kernels), PROMPTS))


@pytest.mark.parametrize("kernels", bfloat16_tables(), ids=table_name)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_held_bytes_are_those_foretold(made: Made, architecture: str, kernels: Kernels) -> None:
    device = DeviceFacts("cpu", 1 << 30, kernels.facts)
    forms: list[tuple[str, tuple[str, ...], Precision]] = [
        ("awq", (), "w4a16"), ("awq", (), "bfloat16"), ("ct-8", (), "w8a16"), ("ct-8-groups", (), "w8a16"),
        ("gptq", (), "w4a16"), ("ct", (), "w4a16"), ("awq", ("layers.1.", "k_proj"), "w4a16"),
    ]  # fmt: skip
    for form, whole, precision in forms:
        checkpoint = open_checkpoint(made(form, architecture, whole)[0])
        seen: list[tuple[int, int]] = []
        decoder = load_decoder(
            checkpoint, checkpoint.facts, kernels, torch.bfloat16, precision=precision,
            on_progress=lambda done, total, seen=seen: seen.append((done, total)),
        )  # fmt: skip
        assert decoder.weight_bytes == weight_bytes(checkpoint.facts, precision, device), (form, precision)
        assert seen[-1][0] == seen[-1][1]
    for precision in ("w4a16", "w8a16"):
        checkpoint = open_checkpoint(made("awq", architecture)[1])
        decoder = load_decoder(checkpoint, checkpoint.facts, kernels, torch.bfloat16, precision=precision)
        assert decoder.weight_bytes == weight_bytes(checkpoint.facts, precision, device), precision


def test_codes_are_read_in_runs_and_each_once(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = made("ct", "InternLM2ForCausalLM")
    whole = load(folder, TABLES[0], "w4a16")
    monkeypatch.setattr(loader, "CODE_ELEMENTS", 700)
    reads: list[tuple[str, tuple[int, int]]] = []
    checkpoint = open_checkpoint(folder)
    read = checkpoint.read_quantized
    checkpoint.read_quantized = lambda name, rows, *more: (reads.append((name, rows)), read(name, rows, *more))[1]  # type: ignore[method-assign,assignment,func-returns-value]
    parts = load_decoder(checkpoint, checkpoint.facts, TABLES[0], torch.float32, precision="w4a16")
    assert_close(prompt_logprobs(parts, PROMPTS), prompt_logprobs(whole, PROMPTS))
    rows = sum(stop - start for name, (start, stop) in reads if name.endswith("layers.1.feed_forward.w2"))
    assert rows == 96
    assert max(stop - start for _, (start, stop) in reads) <= 32


def test_floats_are_rounded_to_nearest_the_same_way_every_time(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", tokenizer=False, intermediate_size=96)
    _, folder = quantized.quantize_folder(source, tmp_path / "linears-as-they-were", quantized.AWQ, whole=("layers",))
    for bits, group in ((4, 32), (8, 0)):
        said = Quantization("compressed-tensors", bits, group, bits == 8)  # type: ignore[arg-type]
        _, floats = quantized.quantize_folder(folder, tmp_path / f"rounded-{bits}", said)
        first, second = (load(folder, TABLES[0], PRECISION[bits]) for _ in range(2))
        found = prompt_logprobs(first, PROMPTS)
        assert all(torch.equal(a, b) for a, b in zip(found, prompt_logprobs(second, PROMPTS), strict=True))
        if bits == 8:
            assert_close(found, prompt_logprobs(load(floats, TABLES[0]), PROMPTS))


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 128), (8, 256)])
def test_each_value_moves_less_than_half_a_step(bits: Any, group: int) -> None:
    weight = torch.randn(24, 256, generator=torch.Generator().manual_seed(0)) * 0.1
    weight[3] = 0
    weight[4] += 1
    matrix = round_to_nearest(weight, bits, group, "w")
    steps = matrix.scales.float().repeat_interleave(group, 1)
    zeros = torch.zeros_like(steps) if matrix.zeros is None else matrix.zeros.float().repeat_interleave(group, 1)
    values = (matrix.codes.float() - zeros) * steps
    # A zero point is rounded too, and moves the ends of the range by up to half a step.
    assert ((values - weight).abs() <= steps * (0.502 if bits == 8 else 1.01)).all()
    assert ((values - weight).abs() <= steps * 0.502).float().mean() > 0.95
    assert (values[3] == 0).all()


def test_values_that_have_no_scale_are_refused() -> None:
    for bad in (float("nan"), float("inf"), 1e9):
        weight = torch.ones(4, 64)
        weight[2, 5] = bad
        with pytest.raises(CheckpointError, match="not finite, or too large"):
            round_to_nearest(weight, 4, 32, "layers.0.down_proj.weight")


def test_codes_of_other_bits_than_asked_are_refused(made: Made) -> None:
    folder, _ = made("awq", "LlamaForCausalLM")
    with pytest.raises(SpecError, match=r"awq of 4 bits.*Use auto or w4a16"):
        load(folder, TABLES[0], "w8a16")


def test_a_damaged_scale_ends_the_load_by_name(made: Made, tmp_path: Path) -> None:
    folder, _ = quantized.make_quantized(tmp_path / "model", quantized.GPTQ, tokenizer=False)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.scales"][0, 0] = np.inf
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.scales"):
        load(folder, TABLES[0], "w4a16")
