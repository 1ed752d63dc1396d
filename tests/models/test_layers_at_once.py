"""A step of few rows runs all layers in one call: to the bit what the operations give one by one."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from plimsoll.api.layers_at_once import FEW_ROWS
from plimsoll.api.precision import HeldCache, Precision
from plimsoll.checkpoint import open_checkpoint
from plimsoll.runtime.engine.worker.runner import Runner, StepResult
from plimsoll.runtime.kernels.native import native_kernels
from plimsoll.runtime.kernels.table import Kernels
from plimsoll.runtime.models.loader import load_decoder
from tests.support.checkpoints import VOCAB_SIZE, make_checkpoint
from tests.support.memory_model import make_decoder
from tests.support.paging import Chunk, make_sequences, runner_of

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama, biased": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "Llama, wide heads that share one key": (
        "LlamaForCausalLM",
        {"hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 24},
    ),
    "Llama, heads that fill no vector": (
        "LlamaForCausalLM",
        {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 20},
    ),
    # Gates of more than one share, and rows that fill no panel.
    "Llama, wide gates": ("LlamaForCausalLM", {"intermediate_size": 1120, "num_key_value_heads": 4}),
    "Mistral, window": ("MistralForCausalLM", {"sliding_window": 9}),
    "Qwen2, a window above the first layer": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1},
    ),
    "Qwen3": ("Qwen3ForCausalLM", {}),
    "InternLM2": ("InternLM2ForCausalLM", {}),
}
PROMPTS = [[(11 * i + 7 * n) % VOCAB_SIZE for i in range(n)] for n in (40, 3, 27)]
CHUNKS = ((40, 3, 27), (1, 1, 1), (17, 2, 5))


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    architecture, overrides = MODELS[request.param]
    return make_checkpoint(tmp_path_factory.mktemp("model"), architecture, tokenizer=False, **overrides)


def steps(runner: Runner, chunks: tuple[int, ...]) -> Iterator[StepResult]:
    """The prompts in chunks of their own until the shortest is done, then one token each."""
    sequences = make_sequences(runner, PROMPTS, room=4)
    for _ in range(4):
        left = [len(seq.token_ids) - seq.num_computed for seq in sequences]
        batch = [Chunk(seq, min(n, most)) for seq, n, most in zip(sequences, chunks, left, strict=True)]
        yield runner.step(batch)
        for chunk in batch:
            chunk.seq.num_computed += chunk.num_new_tokens
            if chunk.seq.num_computed == len(chunk.seq.token_ids):
                chunk.seq.token_ids.append(len(chunk.seq.token_ids) % VOCAB_SIZE)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, "w4a16"), (torch.float32, "w8a16")],
    ids=str,
)
def test_it_is_the_same_to_the_bit(folder: Path, dtype: torch.dtype, precision: Precision | None, threads: int) -> None:
    torch.set_num_threads(threads)
    assert_same_to_the_bit(folder, dtype, precision)


@pytest.mark.parametrize("cache", ["int8", "int4"])
def test_it_is_the_same_to_the_bit_over_a_cache_of_codes(folder: Path, cache: HeldCache) -> None:
    torch.set_num_threads(2)
    assert_same_to_the_bit(folder, torch.bfloat16, None, cache)


def assert_same_to_the_bit(
    folder: Path, dtype: torch.dtype, precision: Precision | None, cache: HeldCache = "float"
) -> None:
    table, checkpoint = native_kernels("cpu", dtype), open_checkpoint(folder)

    def runner(kernels: Kernels) -> Runner:
        decoder = load_decoder(checkpoint, checkpoint.facts, kernels, dtype, precision=precision)
        return runner_of(decoder, 12, 16, dtype, cache)

    for chunks in CHUNKS:
        at_once, one_by_one = runner(table), runner(dataclasses.replace(table, layers=None))
        for found, wanted in zip(steps(at_once, chunks), steps(one_by_one, chunks), strict=True):
            assert torch.equal(found.logits, wanted.logits)
        assert torch.equal(at_once.cache.pool, one_by_one.cache.pool)
        assert at_once.cache.pool.count_nonzero() > 0


def rows_at_once(kernels: Kernels, rows: int) -> bool:
    decoder = make_decoder(dataclasses.replace(kernels, attention=None))  # type: ignore[arg-type]
    runner = runner_of(decoder, 12, 16, torch.float32)
    (sequence,) = make_sequences(runner, [[3] * rows])
    try:
        runner.step([Chunk(sequence, rows)])
    except TypeError:
        return False
    return True


def test_many_rows_are_left_to_the_operations() -> None:
    kernels = native_kernels("cpu", torch.float32)
    assert rows_at_once(kernels, FEW_ROWS - 1)
    assert not rows_at_once(kernels, FEW_ROWS)


def test_rows_that_torch_multiplies_are_left_to_the_operations() -> None:
    kernels = native_kernels("cpu", torch.float32, 9)
    assert rows_at_once(kernels, 8)
    assert not rows_at_once(kernels, 9)


@pytest.mark.parametrize(
    ("block_size", "dtype", "words"), [(16, torch.bfloat16, "float32"), (8, torch.float32, "sixteens")]
)
def test_a_cache_the_kernels_do_not_take_is_refused(block_size: int, dtype: torch.dtype, words: str) -> None:
    runner = runner_of(make_decoder(native_kernels("cpu", torch.float32)), 2, block_size, dtype)
    (sequence,) = make_sequences(runner, [[1]])
    with pytest.raises(ValueError, match=words):
        runner.step([Chunk(sequence, 1)])
    assert not runner.cache.pool.any()
