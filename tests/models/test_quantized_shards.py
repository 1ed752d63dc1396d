"""Ranks of quantized models: the codes of one device, read by segments of words and blocks."""

import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from plimsoll.api.device import DeviceFacts
from plimsoll.api.precision import Precision
from plimsoll.api.shard import shards
from plimsoll.api.sizes import weight_bytes
from plimsoll.checkpoint import open_checkpoint
from plimsoll.runtime.kernels.table import Kernels
from plimsoll.runtime.models.loader import load_decoder
from tests.support import quantized
from tests.support.checkpoints import make_checkpoint, make_gguf, make_model
from tests.support.rank_answers import answers, assert_same_answers, count_reads, load, share_bytes
from tests.support.ranks import ThreadRank, on_ranks
from tests.support.tables import bfloat16_tables, float32_tables

FLOATS, PLAIN, NARROW = float32_tables()[-1], bfloat16_tables()[0], bfloat16_tables()[-1]
PRECISION: dict[int, Precision] = {4: "w4a16", 8: "w8a16"}
Made = Callable[[str, str], Path]
SHAPES: dict[str, Any] = {
    "vocab_size": 331, "hidden_size": 288, "intermediate_size": 160, "num_attention_heads": 9, "num_key_value_heads": 3,
    "head_dim": 32, "num_hidden_layers": 1, "tokenizer": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("shards")

    @cache
    def source(architecture: str) -> Path:
        return make_checkpoint(root / architecture, architecture, **SHAPES)

    @cache
    def make(form: str, architecture: str) -> Path:
        return quantized.quantize_folder(source(architecture), root / f"{architecture}-{form}", quantized.ALL[form])[0]

    return make


def assert_parts(folder: Path, kernels: Kernels, precision: Precision, tensor: int, monkeypatch: Any) -> None:
    """Each rank holds what is foretold and reads its share."""
    dtype = torch.float32 if kernels is FLOATS else torch.bfloat16
    with monkeypatch.context() as patch:
        checkpoint = open_checkpoint(folder)
        facts, asked = checkpoint.facts, count_reads(patch)
        parts = shards(facts, tensor, precision)

        def read(rank: ThreadRank) -> tuple[int, int]:
            own = open_checkpoint(folder)
            before, part = asked[threading.get_ident()], parts[rank.rank]
            held = load_decoder(own, facts, kernels, dtype, precision=precision, shard=part, group=rank)
            return asked[threading.get_ident()] - before, held.weight_bytes

        found = on_ranks(tensor, read)
    device = DeviceFacts("cpu", 1 << 30, kernels.facts)
    for part, (asked_for, held) in zip(parts, found, strict=True):
        if dtype == torch.bfloat16:
            assert held == weight_bytes(facts, precision, device, part)
        share = share_bytes(checkpoint, part)
        assert share * 0.99 < asked_for < share * 1.05


@pytest.mark.parametrize(
    ("form", "architecture"),
    [*((form, "LlamaForCausalLM") for form in quantized.ALL)]
    + [(form, "InternLM2ForCausalLM") for form in ("awq", "ct", "gptq")],
)
def test_stored_codes(made: Made, form: str, architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, precision = made(form, architecture), PRECISION[quantized.ALL[form].bits]
    alone = answers(load(folder, FLOATS, precision)(None))
    for tensor in (2, 3, 4):
        assert_same_answers(load(folder, FLOATS, precision), tensor, alone)
    if form == "awq":
        # As floats its columns may be split within a group.
        assert_same_answers(load(folder, FLOATS), 3, answers(load(folder, FLOATS)(None)))
    for kernels, tensor in ((NARROW, 3), (PLAIN, 2)):
        assert_parts(folder, kernels, precision, tensor, monkeypatch)


@pytest.mark.parametrize("precision", ["bfloat16", "w4a16", "w8a16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_floats_rounded_as_they_are_loaded(tmp_path: Path, precision: Precision, tied: bool, monkeypatch: Any) -> None:
    # With 32 columns a row of down has one scale, which goes over all ranks.
    for name, inner in (("wide", 160), ("narrow", 32)):
        changes = SHAPES | {"intermediate_size": inner, "tie_word_embeddings": tied}
        folder = make_checkpoint(tmp_path / name, "Phi3ForCausalLM" if inner == 32 else "LlamaForCausalLM", **changes)
        alone = answers(load(folder, NARROW, precision, torch.bfloat16)(None), torch.bfloat16)
        for tensor in (2, 3, 4):
            of = load(folder, NARROW, precision, torch.bfloat16)
            assert_same_answers(of, tensor, alone, torch.bfloat16, rounds=True)
            assert_parts(folder, NARROW, precision, tensor, monkeypatch)


@pytest.mark.parametrize("precision", ["w4a16", "w8a16"])
@pytest.mark.parametrize("inner", [160, 32])
def test_codes_of_every_rank_are_those_of_one_device(tmp_path: Path, precision: Precision, inner: int) -> None:
    folder = make_checkpoint(tmp_path / "model", "InternLM2ForCausalLM", **SHAPES | {"intermediate_size": inner})
    facts, table = open_checkpoint(folder).facts, float32_tables()[0]
    alone = load(folder, table, precision)(None).layers[0]
    for tensor in (2, 3, 4):
        ranks = on_ranks(tensor, load(folder, table, precision))
        for matrix in ("output", "down"):
            parts = [getattr(decoder.layers[0], matrix) for decoder in ranks]
            assert torch.equal(torch.cat([part.codes for part in parts], 1), getattr(alone, matrix).codes)
        for rank, part in zip(ranks, shards(facts, tensor, precision), strict=True):
            rows = slice(*part.inner)
            found, whole = rank.layers[0].gate_up, alone.gate_up
            for held, of in ((found.codes, whole.codes), (found.scales, whole.scales)):
                gate, up = of.chunk(2)
                assert torch.equal(held, torch.cat([gate[rows], up[rows]]))


def blocks_of_256(kind: str, rows: int, columns: int, rng: Any) -> tuple[Any, Any]:
    """Rows of random blocks of Q4_K or Q6_K with scales that make weights of a model."""
    if kind == "Q4_K":
        layout = [("d", "<f2"), ("least", "<f2"), ("rest", "u1", 140)]
    else:
        layout = [("rest", "u1", 208), ("d", "<f2")]
    blocks = np.zeros((rows, columns // 256), dtype=layout)
    blocks["rest"] = rng.integers(0, 256, blocks["rest"].shape)
    blocks["d"] = 5e-4 if kind == "Q4_K" else 5e-5
    if kind == "Q4_K":
        blocks["least"] = 37e-4
    return blocks.view(np.uint8).reshape(rows, -1), gguf.GGMLQuantizationType[kind]


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "K"])
def test_blocks_of_a_gguf(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = 16 if kind == "K" else 8
    changes: dict[str, Any] = {"num_attention_heads": heads, "num_key_value_heads": heads // 2, "head_dim": 32}
    changes |= {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}
    model, rng, replaced = make_model("LlamaForCausalLM", **changes), np.random.default_rng(3), {}
    if kind == "K":
        matrices = {
            "attn_q": ("Q4_K", 512, 256), "attn_k": ("Q6_K", 256, 256), "attn_output": ("Q4_K", 256, 512),
            "ffn_gate": ("Q4_K", 512, 256), "ffn_down": ("Q6_K", 256, 512),
        }  # fmt: skip
        replaced = {f"blk.0.{name}.weight": blocks_of_256(*said, rng) for name, said in matrices.items()}
    path = make_gguf(tmp_path / "m.gguf", model, block_type="Q8_0" if kind == "K" else kind, replace=replaced)
    for precision in ("float32", "w4a16", "w8a16"):
        alone = answers(load(path, FLOATS, precision)(None))
        # In 4 bits four heads share a group; no rank cuts a super-block, here a half of the columns.
        for tensor in (2,) if precision == "w4a16" or (kind == "K" and precision == "w8a16") else (2, 3, 4):
            assert_same_answers(load(path, FLOATS, precision), tensor, alone)
            assert_parts(path, FLOATS, precision, tensor, monkeypatch)
