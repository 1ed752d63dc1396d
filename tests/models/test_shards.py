"""Ranks of a tensor-parallel group: together the same answers as one device, from a part of the bytes each."""

import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plimsoll.api.device import DeviceFacts
from plimsoll.api.families.registry import all_families
from plimsoll.api.precision import Precision
from plimsoll.api.shard import Shard, shards
from plimsoll.api.sizes import weight_bytes
from plimsoll.checkpoint import open_checkpoint
from plimsoll.runtime.kernels.table import Kernels
from plimsoll.runtime.models.decoder import Decoder
from plimsoll.runtime.models.loader import load_decoder
from tests.support.checkpoints import VOCAB_SIZE, make_checkpoint
from tests.support.paging import Chunk, make_sequences, runner_of
from tests.support.ranks import ThreadRank, on_ranks
from tests.support.tables import float32_tables

SOURCE = random.Random(11)
PROMPTS = [[SOURCE.randrange(VOCAB_SIZE) for _ in range(length)] for length in (23, 1, 38)]
STEPS = 3
TABLES = float32_tables()


def answers(decoder: Decoder) -> tuple[list[list[int]], list[Tensor]]:
    """Greedy tokens after each prompt, chosen by the rank that leads, and log-probabilities at every position."""
    blocks = sum(-(-(len(prompt) + STEPS) // 16) for prompt in PROMPTS)
    runner = runner_of(decoder, blocks + 1, 16, torch.float32)
    sequences = make_sequences(runner, PROMPTS, room=STEPS)
    found: list[list[Tensor]] = [[] for _ in PROMPTS]
    for _ in range(STEPS):
        batch = [Chunk(seq, len(seq.token_ids) - seq.num_computed) for seq in sequences]
        result = runner.step(batch)
        for index, seq in enumerate(sequences):
            found[index] += [logits for _, logits in result.prompt_logits(index)]
            seq.num_computed = len(seq.token_ids)
            seq.token_ids.append(_chosen(decoder, result.logits, index))
    tokens = [seq.token_ids[len(prompt) :] for seq, prompt in zip(sequences, PROMPTS, strict=True)]
    return tokens, [torch.cat(parts).log_softmax(-1) for parts in found]


def _chosen(decoder: Decoder, logits: Tensor, index: int) -> int:
    """The likeliest token, on every rank."""
    if decoder.group is None:
        return int(logits[index].argmax())
    told = torch.zeros(1)
    if decoder.group.rank == 0:
        told += int(logits[index].argmax())
    return int(decoder.group.sum(told))


def load(folder: Path, kernels: Kernels, precision: Precision | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """A loader of that model for a rank; for one device where the rank is None."""

    def of(rank: ThreadRank | None) -> Decoder:
        checkpoint = open_checkpoint(folder)
        shard = None if rank is None else shards(checkpoint.facts, rank.size, precision or "bfloat16")[rank.rank]
        return load_decoder(
            checkpoint, checkpoint.facts, kernels, dtype, precision=precision, shard=shard, group=rank
        )  # fmt: skip

    return of


def assert_same_answers(of: Callable[[ThreadRank | None], Decoder], tensor: int, alone: Any = None) -> None:
    wanted, close = alone or answers(of(None))
    ranks = on_ranks(tensor, lambda rank: answers(of(rank)))
    assert all(tokens == wanted for tokens, _ in ranks)
    for ours, theirs in zip(ranks[0][1], close, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert not any(len(rows) for _, found in ranks[1:] for rows in found)


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


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Bytes that each thread reads of files of tensors."""
    found: Counter[int] = Counter()
    read = os.preadv

    def counted(descriptor: int, buffers: Any, offset: int) -> int:
        got = read(descriptor, buffers, offset)
        found[threading.get_ident()] += got
        return got

    monkeypatch.setattr(os, "preadv", counted)
    return found


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", ["Llama, biased", "InternLM2", "Phi-3"])
def test_a_rank_reads_its_part_and_no_more(tmp_path: Path, asked: Counter[int], name: str, tied: bool) -> None:
    architecture, changes = MODELS[name]
    folder = make_checkpoint(
        tmp_path / "model", architecture, tokenizer=False, tie_word_embeddings=tied, **ODD | changes
    )
    checkpoint = open_checkpoint(folder)
    for tensor in (2, 3, 4):
        parts = shards(checkpoint.facts, tensor, "float32")

        def read(rank: ThreadRank, parts: tuple[Shard, ...] = parts) -> tuple[int, int]:
            before = asked[threading.get_ident()]
            part = parts[rank.rank]
            decoder = load_decoder(checkpoint, checkpoint.facts, TABLES[0], torch.float32, shard=part, group=rank)
            return asked[threading.get_ident()] - before, decoder.weight_bytes

        device = DeviceFacts("cpu", 1 << 30, TABLES[0].facts)
        for index, (read_bytes, held) in enumerate(on_ranks(tensor, read)):
            assert read_bytes == held == weight_bytes(checkpoint.facts, "float32", device, tensor, index)
