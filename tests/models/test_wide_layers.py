"""A step of many rows of 8 bits runs each layer in one call: to the bit what the operations give one by one."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from plimsoll.api.layers_at_once import FEW_ROWS
from plimsoll.api.precision import HeldCache, Precision
from plimsoll.checkpoint import open_checkpoint
from plimsoll.runtime.engine.worker.runner import Runner
from plimsoll.runtime.kernels.native import native_kernels
from plimsoll.runtime.kernels.table import Kernels
from plimsoll.runtime.models.loader import load_decoder
from tests.support.checkpoints import VOCAB_SIZE, make_checkpoint
from tests.support.paging import Chunk, PagedSequence, Piece, make_sequences, runner_of

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "biased": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    # Runs of 512 columns and a shorter one, where a row has one scale; qkv that fills no panel.
    "wide gates": ("LlamaForCausalLM", {"intermediate_size": 1120, "num_key_value_heads": 1, "head_dim": 8}),
    "norms of heads": ("Qwen3ForCausalLM", {"intermediate_size": 256}),
    "window": ("MistralForCausalLM", {"sliding_window": 40, "num_key_value_heads": 2}),
}
PROMPTS = [[(11 * i + 7 * n) % VOCAB_SIZE for i in range(n)] for n in (300, 3, 131)]
CHUNKS = ((300, 3, 131), (129, 1, 0))
"""434 rows are two bands; 130 are one that is no whole number of tiles."""


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    architecture, overrides = MODELS[request.param]
    return make_checkpoint(
        tmp_path_factory.mktemp("model"), architecture, tokenizer=False, max_position_embeddings=512, **overrides
    )


def built(folder: Path, kernels: Kernels, precision: Precision, cache: HeldCache = "float") -> Runner:
    checkpoint = open_checkpoint(folder)
    decoder = load_decoder(checkpoint, checkpoint.facts, kernels, torch.bfloat16, precision=precision)
    return runner_of(decoder, 40, 16, torch.bfloat16, cache)


def without_operations(kernels: Kernels) -> Kernels:
    """Layers have nothing but the one call."""
    return dataclasses.replace(kernels, attention=None, activate=None, rope=None)  # type: ignore[arg-type]


def step(runner: Runner, counts: tuple[int, ...], due_alone: bool = False) -> torch.Tensor:
    sequences = make_sequences(runner, PROMPTS)
    chunks = [Chunk(seq, n) for seq, n in zip(sequences, counts, strict=True) if n]
    return runner.step(chunks, due_alone=due_alone).logits


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("precision", "cache"), [("w4a16", "float"), ("w8a16", "float"), ("w4a16", "int4")])
def test_it_is_the_same_to_the_bit(folder: Path, precision: Precision, cache: HeldCache, threads: int) -> None:
    torch.set_num_threads(threads)
    table = native_kernels("cpu", torch.bfloat16, int8=True)
    for counts in CHUNKS:
        at_once = built(folder, without_operations(table), precision, cache)
        one_by_one = built(folder, dataclasses.replace(table, layers=None), precision, cache)
        assert torch.equal(step(at_once, counts), step(one_by_one, counts))
        assert torch.equal(at_once.cache.pool, one_by_one.cache.pool)
        assert at_once.cache.pool.count_nonzero() > 0
        assert at_once.decoder.done == one_by_one.decoder.done


def test_a_larger_step_after_a_smaller_one_keeps_the_bits(folder: Path) -> None:
    """The working space grows."""
    table = native_kernels("cpu", torch.bfloat16, int8=True)
    again, fresh = built(folder, table, "w4a16"), built(folder, table, "w4a16")
    for counts in reversed(CHUNKS):
        found = step(again, counts)
    assert torch.equal(found, step(fresh, CHUNKS[0]))


@pytest.mark.parametrize(
    ("kernels", "precision"),
    [
        (native_kernels("cpu", torch.bfloat16, int8=True), "bfloat16"),
        (native_kernels("cpu", torch.bfloat16), "w4a16"),
        (native_kernels("cpu", torch.bfloat16, FEW_ROWS, int8=True), "w4a16"),
    ],
    ids=["weights that are no codes", "rows of bfloat16", "products of torch"],
)
def test_what_is_not_covered_is_left_to_the_operations(folder: Path, kernels: Kernels, precision: Precision) -> None:
    with pytest.raises(TypeError, match="not callable"):
        step(built(folder, without_operations(kernels), precision), CHUNKS[0])
    assert step(built(folder, kernels, precision), CHUNKS[0]).isfinite().all()


@pytest.mark.parametrize("changed", ["positions", "slots"])
def test_places_outside_are_refused_and_nothing_is_written(folder: Path, changed: str) -> None:
    runner = built(folder, native_kernels("cpu", torch.bfloat16, int8=True), "w4a16")
    forward = runner.decoder.forward

    def broken(token_ids: Any, positions: Any, caches: Any, batch: Any, due: Any) -> Any:
        if changed == "positions":
            positions[7] = 1 << 40
        else:
            batch.slot_mapping[7] = 40 * 16
        return forward(token_ids, positions, caches, batch, due)

    runner.decoder.forward = broken  # type: ignore[method-assign]
    with pytest.raises(IndexError, match="lies outside"):
        step(runner, CHUNKS[0])
    assert not runner.cache.pool.any()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("cache", ["float", "int4"])
@pytest.mark.parametrize("counts", [*CHUNKS, (140, 3, 1)], ids=["a row of each", "no row", "one row"])
def test_the_last_layer_of_due_rows_alone_has_the_bits_of_all(
    folder: Path, counts: tuple[int, ...], cache: HeldCache, threads: int
) -> None:
    torch.set_num_threads(threads)
    table = native_kernels("cpu", torch.bfloat16, int8=True)
    due, every = built(folder, table, "w4a16", cache), built(folder, table, "w4a16", cache)
    assert torch.equal(step(due, counts, due_alone=True), step(every, counts))
    assert torch.equal(due.cache.pool, every.cache.pool)
    assert due.decoder.done == every.decoder.done


@pytest.mark.parametrize("due", [[433, 0, 302, 150, 300], list(range(0, 434, 2)), list(range(1, 434)), []], ids=len)
def test_any_rows_may_be_due(folder: Path, due: list[int]) -> None:
    """Those of guesses lie side by side; more than half of all are run as all are."""
    found, wanted = (forwarded(folder, rows) for rows in (torch.tensor(due, dtype=torch.int64), None))
    assert torch.equal(found, wanted.index_select(0, torch.tensor(due, dtype=torch.int64)))


def test_due_rows_where_the_last_panel_of_queries_holds_keys_too(tmp_path: Path) -> None:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}
    folder = make_checkpoint(tmp_path, "LlamaForCausalLM", tokenizer=False, max_position_embeddings=512, **heads)
    table = native_kernels("cpu", torch.bfloat16, int8=True)
    due, every = built(folder, without_operations(table), "w8a16"), built(folder, table, "w8a16")
    assert torch.equal(step(due, CHUNKS[0], due_alone=True), step(every, CHUNKS[0]))
    assert torch.equal(due.cache.pool, every.cache.pool)


@pytest.mark.parametrize("row", [-1, 434])
def test_a_due_row_outside_is_refused(folder: Path, row: int) -> None:
    with pytest.raises(IndexError, match="lies outside"):
        forwarded(folder, torch.tensor([3, row]))


def forwarded(folder: Path, due: torch.Tensor | None) -> torch.Tensor:
    """Hidden states of the rows of all prompts that are due."""
    runner = built(folder, native_kernels("cpu", torch.bfloat16, int8=True), "w8a16")
    sequences = make_sequences(runner, PROMPTS)
    inputs = runner._inputs([Chunk(seq, len(seq.token_ids)) for seq in sequences])
    token_ids, positions, batch = runner._batch(inputs)
    return runner.decoder.forward(token_ids, positions, runner.cache.layers, batch, due)


def test_logits_of_rows_that_are_not_due_cannot_be_asked_for(folder: Path) -> None:
    runner = built(folder, native_kernels("cpu", torch.bfloat16, int8=True), "w4a16")
    sequences = make_sequences(runner, PROMPTS[:1])
    result = runner.step([Chunk(sequences[0], 300)], due_alone=True)
    with pytest.raises(AssertionError, match="rows that got a token"):
        next(result.prompt_logits(0))


@pytest.mark.parametrize("at_first", [300, 131])
def test_rows_that_become_few_between_two_layers_keep_their_bits(folder: Path, at_first: int) -> None:
    """A pass that gives up its last rows: the first layer is of many rows, those after it are all in one call."""
    table, few = native_kernels("cpu", torch.bfloat16, int8=True), FEW_ROWS - 20
    cut, whole = built(folder, table, "w4a16"), built(folder, table, "w4a16")
    prompt, last = PROMPTS[0][:at_first], len(cut.decoder.layers)
    beside, blocks = PagedSequence([5, 6, 7], [39]), list(range(19, 0, -1))
    item, kept = (Chunk(PagedSequence(prompt[:count], blocks), count) for count in (at_first, few))
    cut.step([Chunk(beside, 1)], part=Piece(item, 0, 1, False))
    beside.num_computed = 1
    found = cut.step([Chunk(beside, 1), kept], part=Piece(kept, 1, last, True))
    assert torch.equal(found.logits, whole.step([kept]).logits)
