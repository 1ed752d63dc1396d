"""Paged sequences without a scheduler: blocks dealt out in a shuffled order, chunks as a test asks."""

import itertools
import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

from plimsoll.api.precision import HeldCache
from plimsoll.runtime.engine.worker.kv_cache import KVCache
from plimsoll.runtime.engine.worker.runner import Runner
from plimsoll.runtime.models.decoder import Decoder


def runner_of(
    decoder: Decoder, blocks: int, block_size: int, dtype: torch.dtype, precision: HeldCache = "float"
) -> Runner:
    """A runner whose cache has so many blocks, of floats of `dtype` or of codes."""
    return Runner(decoder, KVCache(decoder.facts, blocks, block_size, dtype, decoder.kernels.device, precision))


@dataclass
class PagedSequence:
    token_ids: list[int]
    block_table: list[int] = field(default_factory=list)
    num_computed: int = 0


@dataclass
class Chunk:
    seq: PagedSequence
    num_new_tokens: int
    guesses: tuple[int, ...] = ()


@dataclass
class Piece:
    """A part of a pass."""

    item: Chunk
    first: int
    stop: int
    whole: bool


def make_runner(
    decoder: Decoder, prompts: list[list[int]], block_size: int, dtype: torch.dtype, room: int = 0,
    precision: HeldCache = "float",
) -> Runner:  # fmt: skip
    """A runner whose pool just holds the prompts and `room` more tokens each."""
    blocks = sum(-(-(len(prompt) + room) // block_size) for prompt in prompts)
    return runner_of(decoder, blocks + 1, block_size, dtype, precision)


def make_sequences(runner: Runner, prompts: list[list[int]], room: int = 0) -> list[PagedSequence]:
    free = list(range(runner.cache.num_blocks))
    random.Random(7).shuffle(free)
    sequences = []
    for prompt in prompts:
        need = -(-(len(prompt) + room) // runner.cache.block_size)
        sequences.append(PagedSequence(list(prompt), [free.pop() for _ in range(need)]))
    return sequences


def prompt_logprobs(
    decoder: Decoder,
    prompts: list[list[int]],
    *,
    chunks: tuple[int, ...] = (1_000_000,),
    block_size: int = 16,
    cache_dtype: torch.dtype = torch.float32,
    cache_precision: HeldCache = "float",
) -> list[Tensor]:
    """Log-probabilities [len(prompt), vocab] of each prompt; all in one batch, cut into `chunks` taken in turn."""
    runner = make_runner(decoder, prompts, block_size, cache_dtype, precision=cache_precision)
    sequences = make_sequences(runner, prompts)
    collected: list[list[Tensor]] = [[] for _ in prompts]
    sizes = itertools.cycle(chunks)
    while active := [index for index, seq in enumerate(sequences) if seq.num_computed < len(seq.token_ids)]:
        batch = []
        for index in active:
            seq = sequences[index]
            batch.append(Chunk(seq, min(next(sizes), len(seq.token_ids) - seq.num_computed)))
        result = runner.step(batch)
        for place, index in enumerate(active):
            collected[index].extend(logits for _, logits in result.prompt_logits(place))
            sequences[index].num_computed += batch[place].num_new_tokens
        finished = [active[place] for place, _ in result.sampled]
        for row, index in enumerate(finished):
            torch.testing.assert_close(result.logits[row], collected[index][-1][-1], rtol=0, atol=1e-4)
    return [torch.cat(parts).log_softmax(-1) for parts in collected]


def greedy(runner: Runner, prompts: list[list[int]], steps: int) -> tuple[list[list[int]], list[Tensor]]:
    """(token ids, log-probabilities [steps, vocab]) of the likeliest continuation of each prompt, all in one batch."""
    sequences = make_sequences(runner, prompts, room=steps)
    rows: list[list[Tensor]] = [[] for _ in prompts]
    for _ in range(steps):
        result = runner.step([Chunk(seq, len(seq.token_ids) - seq.num_computed) for seq in sequences])
        for index, seq in enumerate(sequences):
            seq.num_computed = len(seq.token_ids)
            seq.token_ids.append(int(result.logits[index].argmax()))
            rows[index].append(result.logits[index].log_softmax(-1))
    tokens = [seq.token_ids[len(prompt) :] for seq, prompt in zip(sequences, prompts, strict=True)]
    return tokens, [torch.stack(parts) for parts in rows]
