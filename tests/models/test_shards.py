"""Ranks of a tensor-parallel group: together the same answers as one device, from a part of the bytes each."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from plimsoll.api.device import DeviceFacts
from plimsoll.api.families.registry import all_families
from plimsoll.api.shard import Shard, shards
from plimsoll.api.sizes import weight_bytes
from plimsoll.checkpoint import open_checkpoint
from plimsoll.runtime.models.loader import load_decoder
from tests.support.checkpoints import make_checkpoint
from tests.support.rank_answers import answers, assert_same_answers, count_reads, load
from tests.support.ranks import ThreadRank, on_ranks
from tests.support.tables import float32_tables

TABLES = float32_tables()

#: Nine queries on three keys over two ranks leave one a half of the other, over four one key lies on two.
ODD = {
    "vocab_size": 331, "hidden_size": 72, "intermediate_size": 100, "num_attention_heads": 9, "num_key_value_heads": 3,
    "head_dim": 16,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", {}),
    "Llama, biased": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "Mistral": ("MistralForCausalLM", {}),
    "Qwen2": ("Qwen2ForCausalLM", {}),
    "Qwen3": ("Qwen3ForCausalLM", {}),
    "InternLM2": ("InternLM2ForCausalLM", {}),
    "Gemma 2": ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 24}),
    "Gemma 3": ("Gemma3ForCausalLM", {"query_pre_attn_scalar": 16}),
    "Phi-3": ("Phi3ForCausalLM", {"hidden_size": 144}),
}


def test_every_family_is_among_them() -> None:
    assert {architecture for architecture, _ in MODELS.values()} == set(all_families())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", MODELS)
def test_ranks_answer_as_one_device(tmp_path: Path, name: str, tied: bool) -> None:
    architecture, changes = MODELS[name]
    folder = make_checkpoint(
        tmp_path / "model", architecture, tokenizer=False, tie_word_embeddings=tied, **ODD | changes
    )
    for kernels in TABLES[-1:] if tied else TABLES:
        alone = answers(load(folder, kernels)(None))
        for tensor in (2, 3, 4):
            assert_same_answers(load(folder, kernels), tensor, alone)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", ["Llama, biased", "InternLM2", "Phi-3"])
def test_a_rank_reads_its_part_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, tied: bool
) -> None:
    architecture, changes = MODELS[name]
    folder = make_checkpoint(
        tmp_path / "model", architecture, tokenizer=False, tie_word_embeddings=tied, **ODD | changes
    )
    checkpoint, asked = open_checkpoint(folder), count_reads(monkeypatch)
    for tensor in (2, 3, 4):
        parts = shards(checkpoint.facts, tensor, "float32")

        def read(rank: ThreadRank, parts: tuple[Shard, ...] = parts) -> tuple[int, int]:
            before = asked[threading.get_ident()]
            part = parts[rank.rank]
            decoder = load_decoder(checkpoint, checkpoint.facts, TABLES[0], torch.float32, shard=part, group=rank)
            return asked[threading.get_ident()] - before, decoder.weight_bytes

        device = DeviceFacts("cpu", 1 << 30, TABLES[0].facts)
        for part, (read_bytes, held) in zip(parts, on_ranks(tensor, read), strict=True):
            assert read_bytes == held == weight_bytes(checkpoint.facts, "float32", device, part)
