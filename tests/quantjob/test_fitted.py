"""Defaults that a model cannot have give way, with a sentence; windows that say little are refused or named."""

from pathlib import Path

import pytest

from plimsoll.api.errors import SpecError
from plimsoll.api.job_budget import default_samples
from plimsoll.checkpoint import open_checkpoint
from plimsoll.quantjob.job import QuantizeJob
from plimsoll.quantjob.progress import Tracker
from plimsoll.quantjob.recipe import Recipe
from plimsoll.quantjob.tokens import TokenPlan
from tests.support.checkpoints import make_checkpoint
from tests.support.quantizing import job_options

AS_BY_DEFAULT = Recipe("rtn", 4, 128, "compressed-tensors", search_scale=False, clip=False, compensate=False)


@pytest.mark.parametrize(
    ("width", "inner", "taken", "words"),
    [
        (64, 96, 32, "groups of 32: 128 does not divide the 64 and 96 columns of this model"),
        (64, 128, 64, "groups of 64: 128 does not divide the 64 columns of this model"),
        (128, 256, 128, None),
    ],
)
def test_the_default_group_is_the_largest_that_divides_and_a_smaller_one_is_said(
    width: int, inner: int, taken: int, words: str | None, tmp_path: Path
) -> None:
    source = make_checkpoint(
        tmp_path / "model", num_hidden_layers=1, hidden_size=width, intermediate_size=inner, head_dim=width // 4
    )
    said: list[str] = []
    options = job_options(
        source, tmp_path / "out", source, recipe=AS_BY_DEFAULT, plan=TokenPlan("self", 0, 512, 0),
        fitted=frozenset({"group_size", "length"}),
    )  # fmt: skip
    QuantizeJob(options, Tracker(), said.append).run()
    quantized = open_checkpoint(tmp_path / "out").facts.quantization
    assert quantized is not None
    assert quantized.group_size == taken
    assert [note for note in said if "128 does not divide" in note] == ([words] if words else [])
    assert "windows of 256 tokens: this model has no more positions" in said


def test_a_group_that_was_asked_for_is_refused_and_not_replaced(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", num_hidden_layers=1)
    options = job_options(source, tmp_path / "out", source, recipe=AS_BY_DEFAULT, plan=TokenPlan("self", 0, 48, 0))
    with pytest.raises(SpecError, match=r"does not divide.*Use 32"):
        QuantizeJob(options, Tracker(), lambda note: None).run()


def test_windows_that_calibrate_by_default() -> None:
    assert (default_samples(sampled=True), default_samples(sampled=False)) == (32, 128)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (TokenPlan("x", 1, 16, 0), ["only 16 tokens calibrate, so that the weights fit them"]),
        (TokenPlan("x", 4, 512, 1), []),
        (TokenPlan("x", 4, 512, 1, seed=1), []),
        (TokenPlan("x", 0, 48, 2), ["only 96 tokens are measured on, so that figures vary by chance"]),
    ],
)
def test_few_tokens_are_named(plan: TokenPlan, words: list[str]) -> None:
    notes = list(plan.notes())
    assert len(notes) == len(words)
    assert all(note.startswith(start) for note, start in zip(notes, words, strict=True))
