"""Answers of the ranks of a tensor-parallel group beside those of one device, and the bytes that each rank reads."""

import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from plimsoll.api.families.registry import find_family
from plimsoll.api.layer_tensors import SUMMED, expected_tensors, role_shape
from plimsoll.api.precision import Precision
from plimsoll.api.shard import Shard, shards
from plimsoll.checkpoint import Checkpoint, open_checkpoint
from plimsoll.runtime.kernels.table import Kernels
from plimsoll.runtime.models.decoder import Decoder
from plimsoll.runtime.models.loader import load_decoder
from tests.support.checkpoints import VOCAB_SIZE
from tests.support.paging import Chunk, make_sequences, runner_of
from tests.support.ranks import ThreadRank, on_ranks

SOURCE = random.Random(11)
PROMPTS = [[SOURCE.randrange(VOCAB_SIZE) for _ in range(length)] for length in (23, 1, 38)]
CHUNK = 17
"""Tokens of a prompt that are computed at once."""
STEPS = 3
"""Tokens that are generated after each prompt."""
Answers = tuple[list[list[int]], list[Tensor]]


def answers(
    decoder: Decoder, cache: torch.dtype = torch.float32, words: int = VOCAB_SIZE
) -> tuple[list[list[int]], list[Tensor]]:
    """Greedy tokens after each prompt, chosen by the rank that leads, and log-probabilities at every position.

    Args:
        words: token ids there are.
    """
    prompts = [[token % words for token in prompt] for prompt in PROMPTS]
    blocks = sum(-(-(len(prompt) + STEPS) // 16) for prompt in prompts)
    runner = runner_of(decoder, blocks + 1, 16, cache)
    sequences = make_sequences(runner, prompts, room=STEPS)
    found: list[list[Tensor]] = [[] for _ in prompts]
    while active := [at for at, seq in enumerate(sequences) if len(seq.token_ids) < len(prompts[at]) + STEPS]:
        left = [len(sequences[at].token_ids) - sequences[at].num_computed for at in active]
        batch = [Chunk(sequences[at], min(CHUNK, count)) for at, count in zip(active, left, strict=True)]
        result = runner.step(batch)
        for place, at in enumerate(active):
            found[at] += [logits for _, logits in result.prompt_logits(place)]
            sequences[at].num_computed += batch[place].num_new_tokens
        for row, (place, _) in enumerate(result.sampled):
            sequences[active[place]].token_ids.append(_chosen(decoder, result.logits, row))
    tokens = [seq.token_ids[len(prompt) :] for seq, prompt in zip(sequences, prompts, strict=True)]
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


def assert_same_answers(
    of: Callable[[ThreadRank | None], Decoder],
    tensor: int,
    alone: Any,
    cache: torch.dtype = torch.float32,
    words: int = VOCAB_SIZE,
    rounds: bool = False,
) -> None:
    """`rounds`: products round their rows to bfloat16. Ranks sum in another order, so a few values go to the other
    neighbour: some positions then differ, by little, and the rest agree as closely as ever."""
    wanted, close = alone
    ranks = on_ranks(tensor, lambda rank: answers(of(rank), cache, words))
    assert all(tokens == wanted for tokens, _ in ranks)
    apart = torch.cat([(ours - theirs).abs().amax(1) for ours, theirs in zip(ranks[0][1], close, strict=True)])
    assert float((apart > 1e-4).float().mean()) <= (0.8 if rounds else 0), apart
    assert float(apart.max()) <= 0.15, apart
    assert not any(len(rows) for _, found in ranks[1:] for rows in found)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Bytes that each thread reads of files of tensors from now on."""
    found: Counter[int] = Counter()
    read = os.preadv

    def counted(descriptor: int, buffers: Any, offset: int) -> int:
        got = read(descriptor, buffers, offset)
        found[threading.get_ident()] += got
        return got

    monkeypatch.setattr(os, "preadv", counted)
    return found


def share_bytes(checkpoint: Checkpoint, shard: Shard) -> float:
    """Stored bytes of a rank's share: its rows of its columns, those in whole blocks of a GGUF."""
    facts, names = checkpoint.facts, find_family(checkpoint.facts.architecture).names
    roles = {linear.module: linear.roles for linear in names.linears}
    total = 0.0
    for name in expected_tensors(facts):
        fact = checkpoint.tensors[name]
        module, _, kind = name.rpartition(".")
        found = next((roles[own] for own in roles if module.endswith(f".{own}")), ())
        part = 1.0
        if module in (names.embedding, names.head):
            part = (shard.vocab[1] - shard.vocab[0]) / facts.vocab_size
        elif found:
            rows = sum(stop - start for start, stop in (shard.rows(facts, role) for role in found))
            part = rows / sum(role_shape(facts, role)[0] for role in found)
            if kind == "weight":
                start, stop = shard.columns(facts, found[0])
                block = GGML_QUANT_SIZES[GGMLQuantizationType[fact.dtype]][0] if checkpoint.format == "gguf" else 1
                part *= (-(-stop // block) - start // block) * block / role_shape(facts, found[0])[1]
            elif found[0] in SUMMED and not shard.leads:
                part = 0
        total += fact.nbytes * part
    return total
