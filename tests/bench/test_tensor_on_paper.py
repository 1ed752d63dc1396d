"""Tensor-parallel decoding on paper: the arithmetic, and the table of docs/sizing.md that it prints."""

from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.tensor_on_paper import GIB, H100, MODELS, SIZES, Step, step_of, table

PAGE = Path(__file__).parents[2] / "docs" / "sizing.md"


def step(model: str, tensor: int, batch: int = 16, tokens: int = 2048) -> Step:
    """A step with sums of 10 microseconds."""
    found = step_of(MODELS[model], H100, tensor, batch, tokens, 1e-5)
    assert found is not None
    return found


def test_the_table_of_the_page_is_what_the_script_prints() -> None:
    text = PAGE.read_text()
    part = text[text.index("| model | GPUs |") :].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in part.splitlines()[2:]]
    assert rows == table(16, 2048, 1e-5)
    assert [row[1] for row in rows] == [str(size) for size in SIZES] * len(MODELS)


def test_a_step_reads_computes_and_sends_what_the_shapes_say() -> None:
    # Llama 3.1 8B: 32 layers, hidden 4096, inner 14336, 8 key-value heads of 128, 128,256 words.
    layer = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336
    linears, head = 32 * layer, 128256 * 4096
    for tensor in (1, 2, 4, 8):
        found = step("8B", tensor)
        norms = 65 * 4096
        cached = 16 * 2048 * 32 * 2 * 8 * 128 * 2 // tensor
        assert found.held == 2 * ((linears + 2 * head) // tensor + norms)
        assert found.read == 2 * ((linears + head) // tensor + norms) + cached
        assert found.flops == 16 * (2 * (linears + head) + 32 * 4 * 4096 * 2048) // tensor
    two = step("8B", 2)
    assert two.sums == 2 * 32 + 2
    # Each of 65 sums of 16 vectors sends as many bytes as they have; logits of half the words go to rank 0.
    assert two.sent == 65 * 16 * 4096 * 2 + 16 * 64128 * 4
    assert two.sum_seconds == pytest.approx(66e-5 + two.sent / 450e9)
    assert two.compute_seconds == pytest.approx(two.read / 3.35e12)
    assert (step("8B", 1).sums, step("8B", 1).sum_seconds) == (0, 0)


def test_more_gpus_are_faster_by_less_than_their_number_and_hold_more_tokens() -> None:
    for model, fewest in (("8B", 1), ("70B", 2)):
        steps = [step(model, tensor) for tensor in SIZES if tensor >= fewest]
        for few, many in pairwise(steps):
            assert 1 < few.seconds / many.seconds < 2
            assert many.cache_tokens > 2 * few.cache_tokens
    assert step_of(MODELS["70B"], H100, 1, 16, 2048, 1e-5) is None
    # A cache that does not hold the batch is none either.
    assert step_of(MODELS["70B"], H100, 2, 64, 2048, 1e-5) is None
    assert step("70B", 2).held < 79 * GIB
