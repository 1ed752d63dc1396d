"""Which windows calibrate and which are measured on, and text that the model writes itself."""

from pathlib import Path

import numpy as np
import pytest

from plimsoll.api.budget import Load, budget
from plimsoll.api.errors import DoesNotFitError, SpecError
from plimsoll.api.job_budget import SAMPLED_AT_ONCE
from plimsoll.api.sizes import block_bytes
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.tokenizer import load_tokenizer
from plimsoll.quantjob.data import Tokens
from plimsoll.quantjob.selftext import BLOCK, self_tokens
from plimsoll.quantjob.tokens import TokenPlan, token_sets
from plimsoll.runtime.kernels.forecast import foreseen_device
from tests.support.checkpoints import VOCAB_SIZE, make_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tokens") / "llama")


def sets(folder: Path, plan: TokenPlan) -> tuple[Tokens | None, Tokens | None]:
    checkpoint = open_checkpoint(folder)
    return token_sets(plan, folder, checkpoint.facts, load_tokenizer(checkpoint), threads=1)


def test_self_text_is_the_same_for_a_seed_on_any_threads_and_other_for_another(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    (one, other), (again,) = (
        self_tokens(folder, wanted, 24, threads=threads, progress=lambda *now: seen.append(now))
        for threads, wanted in ((1, [(3, 7), (2, 8)]), (2, [(3, 7)]))
    )
    assert one.windows.shape == (3, 24)
    assert one.windows.dtype == np.int64
    assert 0 <= one.windows.min() <= one.windows.max() < VOCAB_SIZE
    assert (one.windows == again.windows).all()
    assert one.digest == again.digest != other.digest
    assert "seed 7" in one.source
    assert seen[-1] == (72, 72)


def test_self_text_does_not_depend_on_how_much_is_asked_for(folder: Path) -> None:
    (few,), (many,) = (self_tokens(folder, [(count, 0)], 16, threads=1) for count in (2, SAMPLED_AT_ONCE + 2))
    assert (many.windows[:2] == few.windows).all()


def test_a_model_that_does_not_fit_whole_names_what_needs_less(folder: Path) -> None:
    with pytest.raises(DoesNotFitError, match="the whole model in memory") as caught:
        self_tokens(folder, [(1, 0)], 16, memory=2**20)
    assert "a dataset in place of self" in str(caught.value)
    assert "--calib-dataset" in str(caught.value)


def test_a_model_that_fits_in_fewer_bits_alone_writes_its_text_so(folder: Path) -> None:
    facts = open_checkpoint(folder).facts
    load = Load(
        precision="bfloat16", cache_bytes=SAMPLED_AT_ONCE * block_bytes(facts, BLOCK, "bfloat16"), block_size=BLOCK,
        max_length=16, max_batched_tokens=BLOCK, max_running=SAMPLED_AT_ONCE, trained_length=facts.max_position,
    )  # fmt: skip
    whole = budget(facts, foreseen_device("cpu", 1 << 34), load).in_use
    for memory, precision in ((whole, "bfloat16"), (whole - 1, "w8a16")):
        (found,) = self_tokens(folder, [(1, 0)], 16, memory=memory, threads=1)
        assert f"sampled in {precision} " in found.source


def test_one_file_is_split_and_two_are_not(folder: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("".join(f"line {index} of one\n" for index in range(400)))
    two.write_text("".join(f"other line {index} of two\n" for index in range(400)))
    calibration, held_out = sets(folder, TokenPlan(str(one), 4, 64, 3))
    assert calibration is not None and held_out is not None  # noqa: PT018
    assert calibration.windows.shape == (4, 64)
    assert held_out.windows.shape == (3, 64)
    assert calibration.windows[0].tolist() != held_out.windows[0].tolist()
    same, elsewhere = sets(folder, TokenPlan(str(one), 4, 64, 3, held_out_dataset=str(two)))
    assert same is not None and elsewhere is not None  # noqa: PT018
    assert same.digest == calibration.digest
    assert elsewhere.digest != held_out.digest
    assert (calibration.source, elsewhere.source) == (str(one), str(two))


def test_a_file_calibrates_and_self_text_measures(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "one.txt"
    file.write_text("one two three " * 300)
    calibration, held_out = sets(folder, TokenPlan(str(file), 2, 32, 2, held_out_dataset="self"))
    assert calibration is not None and held_out is not None  # noqa: PT018
    assert calibration.source == str(file)
    assert held_out.source.startswith("self")
    none, measured = sets(folder, TokenPlan("self", 0, 32, 2, held_out_dataset=str(file)))
    assert none is None
    assert measured is not None
    assert measured.windows.shape == (2, 32)


@pytest.mark.parametrize(
    ("plan", "field"),
    [
        (TokenPlan("self", -1, 16, 1), "--calib-samples"),
        (TokenPlan("self", 1, 16, -1), "--eval-samples"),
        (TokenPlan("self", 1, 1, 1), "--calib-seqlen"),
        (TokenPlan("self", 1, 257, 1), "256 positions"),
    ],
)
def test_windows_that_cannot_be_are_refused_before_anything_runs(folder: Path, plan: TokenPlan, field: str) -> None:
    with pytest.raises(SpecError, match=field):
        sets(folder, plan)
