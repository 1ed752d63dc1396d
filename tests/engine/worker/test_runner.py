"""The runner: the same numbers however a step is put together, and no more logits than asked for."""

import random

import pytest
import torch

from plimsoll.runtime.engine.worker import runner as runner_module
from plimsoll.runtime.kernels.table import Kernels
from plimsoll.runtime.kernels.torch_ops import torch_kernels
from tests.support.memory_model import make_decoder
from tests.support.paging import Chunk, PagedSequence, Piece, make_sequences, prompt_logprobs, runner_of
from tests.support.tables import float32_tables, table_name

PROMPTS = [[(7 * i + n) % 50 for i in range(n)] for n in (40, 1, 23, 16, 65)]
TORCH = torch_kernels("cpu", torch.float32)
tables = pytest.mark.parametrize("kernels", float32_tables(), ids=table_name)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def same(kernels: Kernels, found: torch.Tensor, wanted: torch.Tensor) -> None:
    """To the bit, save for plain torch, whose matrix products round by the number of rows."""
    close(found, wanted)
    assert kernels.name == "torch" or torch.equal(found, wanted)


@tables
@pytest.mark.parametrize("window", [None, 9])
def test_batched_and_chunked_are_sequential_and_whole(kernels: Kernels, window: int | None) -> None:
    decoder = make_decoder(kernels, windows=(window, None, window))
    alone = [prompt_logprobs(decoder, [prompt])[0] for prompt in PROMPTS]
    for chunks in ((1000,), (1,), (5, 1, 17)):
        for found, wanted in zip(prompt_logprobs(decoder, PROMPTS, chunks=chunks), alone, strict=True):
            same(kernels, found, wanted)
    for found, wanted in zip(prompt_logprobs(decoder, PROMPTS, block_size=64), alone, strict=True):
        close(found, wanted)


@tables
def test_a_shared_prefix_is_worth_what_it_costs_to_compute(kernels: Kernels) -> None:
    decoder = make_decoder(kernels)
    runner = runner_of(decoder, 8, 16, torch.float32)
    first = PagedSequence(PROMPTS[0], [6, 2, 4])
    cold = runner.step([Chunk(first, 40)]).logits
    second = PagedSequence(PROMPTS[0], [6, 2, 7], num_computed=32)
    same(kernels, runner.step([Chunk(second, 8)]).logits, cold)


def test_only_sequences_that_are_up_to_date_get_logits() -> None:
    runner = runner_of(make_decoder(TORCH), 16, 16, torch.float32)
    sequences = make_sequences(runner, PROMPTS[:3])
    result = runner.step([Chunk(sequences[0], 39), Chunk(sequences[1], 1), Chunk(sequences[2], 23)])
    assert result.sampled == [(1, 0), (2, 0)]
    assert result.logits.shape == (2, 50)
    assert result.logits.dtype == torch.float32
    nothing = runner_of(make_decoder(TORCH), 16, 16, torch.float32).step([Chunk(sequences[0], 3)])
    assert nothing.sampled == []
    assert nothing.logits.shape == (0, 50)


def test_prompt_logits_come_in_bounded_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "PROMPT_LOGIT_ROWS", 7)
    runner = runner_of(make_decoder(TORCH), 16, 16, torch.float32)
    sequences = make_sequences(runner, PROMPTS[:3])
    result = runner.step([Chunk(seq, len(seq.token_ids)) for seq in sequences])
    slices = list(result.prompt_logits(2))
    assert [row for row, _ in slices] == [0, 7, 14, 21]
    assert max(len(logits) for _, logits in slices) == 7
    close(slices[-1][1][-1], result.logits[2])


def test_the_pool_is_one_allocation() -> None:
    runner = runner_of(make_decoder(TORCH), 5, 16, torch.bfloat16)
    # Layers, key and value, blocks, heads, tokens, head size, bytes.
    assert runner.cache.pool.nbytes == 3 * 2 * 5 * 2 * 16 * 8 * 2
    caches = [cache for layer in runner.cache.layers for cache in (layer.keys, layer.values)]
    assert len({cache.untyped_storage().data_ptr() for cache in caches}) == 1
    assert all(cache.shape == (5, 2, 16, 8) and cache.is_contiguous() for cache in caches)


@tables
def test_another_requests_nan_stays_its_own(kernels: Kernels) -> None:
    decoder = make_decoder(kernels)
    runner = runner_of(decoder, 8, 16, torch.float32)
    sequences = [PagedSequence(PROMPTS[1] * 3, [5]), PagedSequence(PROMPTS[0], [1, 2, 3])]
    clean = runner.step([Chunk(seq, len(seq.token_ids)) for seq in sequences]).logits
    runner.cache.pool[:, :, [0, 4, 6, 7]] = float("nan")
    for seq in sequences:
        seq.num_computed = len(seq.token_ids) - 1
    same(kernels, runner.step([Chunk(seq, 1) for seq in sequences]).logits, clean)


def test_cleared_blocks_are_zero() -> None:
    runner = runner_of(make_decoder(TORCH), 4, 16, torch.float32)
    runner.cache.pool.fill_(float("nan"))
    runner.clear_blocks([3, 1])
    finite = runner.cache.pool.isfinite().all(dim=(0, 1, 3, 4, 5))
    assert finite.tolist() == [False, True, False, True]


@tables
@pytest.mark.parametrize("rows", [9, 150])
def test_layers_in_ranges_are_the_layers_in_one_go_for_few_rows_and_many(kernels: Kernels, rows: int) -> None:
    """Also once the last rows have left."""
    decoder = make_decoder(kernels, windows=(None, 9, None, None), max_position=256)
    prompt = [(7 * at + 3) % 50 for at in range(rows)]
    whole, cut = (runner_of(decoder, 20, 16, torch.float32) for _ in range(2))
    table, beside = random.Random(3).sample(range(19), 10), PagedSequence([5] * 9, [19])
    wanted = whole.step([Chunk(PagedSequence(prompt, table), rows)])
    left = rows - 3
    stops = ((rows, 0, 1), (rows, 1, 3), (left, 3, 4))
    for count, first, stop in stops:
        item = Chunk(PagedSequence(prompt[:count], table), count)
        rows_of_step = [Chunk(beside, 1), item] if stop == 4 else [Chunk(beside, 1)]
        found = cut.step(rows_of_step, part=Piece(item, first, stop, stop == 4))
        beside.num_computed += 1
    same(kernels, cut.logits(list(range(1, left + 1))), whole.logits(list(range(left))))
    same(kernels, found.logits[0], whole.logits([left - 1])[0])
    further = PagedSequence([*prompt[:left], 11], table, num_computed=left)
    same(kernels, cut.step([Chunk(further, 1)]).logits, whole.step([Chunk(further, 1)]).logits)
    assert len(wanted.logits) == 1


@tables
def test_a_pass_runs_beside_steps_and_a_pass_without_a_part_is_dropped(kernels: Kernels) -> None:
    decoder = make_decoder(kernels)
    alone = runner_of(decoder, 16, 16, torch.float32)
    prompt, stream = PagedSequence(PROMPTS[0], [1, 2, 3]), PagedSequence(PROMPTS[2], [7, 5])
    wanted = alone.step([Chunk(stream, 23), Chunk(prompt, 40)]).logits
    runner = runner_of(decoder, 16, 16, torch.float32)
    item = Chunk(prompt, 40)
    for first in (0, 1):
        result = runner.step([Chunk(stream, 10 + first)], part=Piece(item, first, first + 1, False))
        assert result.sampled == []
        stream.num_computed += 10 + first
    result = runner.step([Chunk(stream, 2), item], part=Piece(item, 2, 3, True))
    assert result.sampled == [(0, 0), (1, 0)]
    same(kernels, result.logits, wanted)
    same(kernels, torch.cat([logits for _, logits in result.prompt_logits(1)])[-1], wanted[1])
    stream.num_computed = 22
    runner.step([Chunk(stream, 1)], part=Piece(item, 0, 1, False))
    assert runner._pass is not None
    runner.step([Chunk(stream, 1)])
    assert runner._pass is None
