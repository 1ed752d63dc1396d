"""Figures of a checkpoint against another, held against what transformers computes."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from plimsoll.api.errors import CheckpointError, SpecError
from plimsoll.api.precision import HeldCache
from plimsoll.checkpoint import open_checkpoint
from plimsoll.quantjob.data import Tokens, tokens_of
from plimsoll.quantjob.evaluation import Comparison, compare
from plimsoll.quantjob.kept_evaluation import KeptEvaluation
from plimsoll.quantjob.rounding import Rounding
from plimsoll.quantjob.steps import ComparedSteps
from plimsoll.quantjob.streamed import StreamedModel
from plimsoll.quantjob.workers import Workers
from plimsoll.runtime.kernels.torch_ops import torch_kernels
from plimsoll.runtime.models.loader import load_decoder
from tests.support.checkpoints import VOCAB_SIZE, make_checkpoint
from tests.support.paging import prompt_logprobs

WINDOWS, LENGTH = 5, 24


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints of one shape, and different weights."""
    root = tmp_path_factory.mktemp("evaluation")
    return make_checkpoint(root / "one"), make_checkpoint(root / "two", seed=1)


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    ids = np.random.default_rng(0).integers(0, VOCAB_SIZE, (WINDOWS, LENGTH))
    return tokens_of(ids.astype(np.int64), "random")


def model(folder: Path, **options: object) -> StreamedModel:
    return StreamedModel(open_checkpoint(folder), **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def found(folders: tuple[Path, Path], tokens: Tokens) -> Comparison:
    one, two = folders
    return compare(model(one), {"itself": model(one), "two": model(two)}, tokens)


def by_transformers(folder: Path, ids: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Log-probabilities float64 [S, L - 1, V] of what follows, and the hidden states after each layer."""
    from transformers import AutoModelForCausalLM

    peer = AutoModelForCausalLM.from_pretrained(folder).eval()
    states: list[torch.Tensor] = []
    for layer in peer.model.layers:
        layer.register_forward_hook(lambda module, inputs, output: states.append(output))
    with torch.no_grad():
        logits = peer(ids).logits
    return torch.log_softmax(logits[:, :-1].double(), -1), states


def test_figures_are_those_of_transformers(folders: tuple[Path, Path], tokens: Tokens, found: Comparison) -> None:
    ids = torch.from_numpy(tokens.windows)
    (p, states), (q, others) = (by_transformers(folder, ids) for folder in folders)
    two = found.others["two"]
    kl = (p.exp() * (p - q)).sum(-1).flatten().numpy()
    np.testing.assert_allclose(found.loss, -p.gather(2, ids[:, 1:, None]).flatten().numpy(), atol=2e-4)
    np.testing.assert_allclose(two.loss, -q.gather(2, ids[:, 1:, None]).flatten().numpy(), atol=2e-4)
    np.testing.assert_allclose(two.kl, kl, atol=2e-4)
    assert found.perplexity == pytest.approx(float(np.exp(found.loss.mean())))
    assert two.kl_mean == pytest.approx(kl.mean(), rel=1e-4)
    assert two.kl_p99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-4)
    assert two.top1_agreement == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean())
    apart = [float((o - r).square().sum() / r.square().sum()) for r, o in zip(states, others, strict=True)]
    assert two.layer_error == pytest.approx(apart, rel=1e-3)
    assert found.positions == WINDOWS * (LENGTH - 1)
    assert (found.windows, found.length, found.digest) == (WINDOWS, LENGTH, tokens.digest)


def test_a_checkpoint_is_no_distance_from_itself(found: Comparison) -> None:
    itself = found.others["itself"]
    assert not itself.kl.any()
    assert itself.agrees.all()
    assert set(itself.layer_error) == {0.0}
    assert (itself.loss == found.loss).all()
    assert found.evaluation("itself").increase == 0


def test_figures_have_the_same_bits_on_any_number_of_threads_and_on_disk(
    folders: tuple[Path, Path], tokens: Tokens, found: Comparison, tmp_path: Path
) -> None:
    one, two = folders
    for count, scratch in ((1, None), (3, tmp_path)):
        workers = Workers(count)
        again = compare(model(one, workers=workers), {"two": model(two, workers=workers)}, tokens, scratch=scratch)
        workers.close()
        assert (again.loss == found.loss).all()
        assert (again.others["two"].kl == found.others["two"].kl).all()
        assert again.others["two"].layer_error == found.others["two"].layer_error


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_comparison_that_ended_early_goes_on_to_the_same_bits(
    on_disk: bool, folders: tuple[Path, Path], tokens: Tokens, found: Comparison, tmp_path: Path
) -> None:
    one, two = folders

    class EndedError(Exception):
        pass

    left = iter(range(6))

    def proceed() -> None:
        # Six things are kept: both layers of both models, and two of the five windows.
        if next(left, None) is None:
            raise EndedError

    told: list[float] = []
    evenly = ComparedSteps(1.0, 1.0)

    def again(**options: object) -> Comparison:
        kept = KeptEvaluation(tmp_path / "kept", "tokens and weights", 2, **options)  # type: ignore[arg-type]
        scratch = tmp_path if on_disk else None
        return compare(
            model(one), {"two": model(two)}, tokens, kept=kept, scratch=scratch, lengths=evenly,
            batch=len(tokens.windows), progress=lambda share, upto: told.append(share),
        )  # fmt: skip

    with pytest.raises(EndedError):
        again(proceed=proceed)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    assert sorted(before) == ["state.json", "states-0-2.f32", "states-1-2.f32", "window-0.npy", "window-1.npy"]
    assert sorted(set(told)) == pytest.approx([step / 9 for step in range(7)])
    told.clear()
    result = again()
    assert sorted(set(told)) == pytest.approx([6 / 9, 7 / 9, 8 / 9, 1.0])
    assert (result.loss == found.loss).all()
    assert (result.others["two"].kl == found.others["two"].kl).all()
    assert (result.others["two"].agrees == found.others["two"].agrees).all()
    assert result.others["two"].layer_error == found.others["two"].layer_error
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    assert before.items() <= after.items(), "nothing is computed twice"
    assert len(after) == len(before) + 3


def test_what_is_kept_of_another_comparison_is_not_gone_on_with(
    folders: tuple[Path, Path], tokens: Tokens, found: Comparison, tmp_path: Path
) -> None:
    one, two = folders
    for other, key in ((one, "one"), (two, "two")):
        kept = KeptEvaluation(tmp_path, key, 2)
        assert kept.layers == [0, 0]
        again = compare(model(one), {"other": model(other)}, tokens, kept=kept)
    assert (again.others["other"].kl == found.others["two"].kl).all()
    (tmp_path / "states-1-2.f32").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="was cut after it was written"):
        compare(model(one), {"other": model(two)}, tokens, kept=KeptEvaluation(tmp_path, "two", 2))


def test_rounding_on_reading_costs_something_and_eight_bits_less_than_four(
    folders: tuple[Path, Path], tokens: Tokens
) -> None:
    checkpoint = open_checkpoint(folders[0])
    rounded = {
        name: StreamedModel(checkpoint, round_to=rounding)
        for name, rounding in (("int8", Rounding(8)), ("rtn", Rounding(4, 32)))
    }
    again = compare(StreamedModel(checkpoint), rounded, tokens)
    assert 0 < again.others["int8"].kl_mean < again.others["rtn"].kl_mean / 10
    assert 0 < again.others["int8"].layer_error[-1] < again.others["rtn"].layer_error[-1]
    summary = again.evaluation("int8", "rtn")
    assert summary.round_to_nearest is not None
    assert summary.after.kl_mean < summary.round_to_nearest.kl_mean
    assert summary.before == again.perplexity


def test_another_vocabulary_is_refused(folders: tuple[Path, Path], tokens: Tokens, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", vocab_size=VOCAB_SIZE + 8)
    with pytest.raises(SpecError, match=f"{VOCAB_SIZE + 8} tokens, the reference of {VOCAB_SIZE}"):
        compare(model(folders[0]), {"other": model(other)}, tokens)


@pytest.mark.parametrize(("length", "why"), [(1, "2 or more"), (257, "longer than the 256 positions")])
def test_windows_that_predict_nothing_or_are_too_long_are_refused(
    folders: tuple[Path, Path], length: int, why: str
) -> None:
    windows = tokens_of(np.zeros((1, length), np.int64), "zeros")
    with pytest.raises(SpecError, match=why):
        compare(model(folders[0]), {}, windows)


def test_values_that_overflow_are_no_figures(folders: tuple[Path, Path], tokens: Tokens, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(folders[0], broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] *= 1e38
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    result = compare(model(folders[0]), {"broken": model(broken)}, tokens)
    with pytest.raises(SpecError, match="no number to judge by"):
        result.evaluation("broken")


def test_progress_only_grows_and_ends_at_one(folders: tuple[Path, Path], tokens: Tokens) -> None:
    seen: list[float] = []
    compare(model(folders[0]), {"two": model(folders[1])}, tokens, progress=lambda share, upto: seen.append(share))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


CACHES: tuple[HeldCache, ...] = ("int8", "int4")


@pytest.fixture(scope="module")
def measured(folders: tuple[Path, Path], tokens: Tokens) -> Comparison:
    one, two = folders
    made = open_checkpoint(two)
    others = {"itself": model(one), "two": StreamedModel(made)}
    caches = {held: StreamedModel(made, cache=held) for held in CACHES}
    return compare(model(one), others, tokens, caches=caches, cached="two")


def test_caches_of_codes_are_measured_beside_their_own_checkpoint(
    folders: tuple[Path, Path], tokens: Tokens, measured: Comparison
) -> None:
    """By what the engine's own paged cache makes of the same weights and tokens."""
    checkpoint = open_checkpoint(folders[1])
    decoder = load_decoder(checkpoint, checkpoint.facts, torch_kernels("cpu", torch.float32), torch.float32)
    windows = [list(map(int, window)) for window in tokens.windows]
    following = torch.from_numpy(tokens.windows)[:, 1:, None]

    def by_engine(held: HeldCache) -> torch.Tensor:
        with torch.inference_mode():
            return torch.stack(prompt_logprobs(decoder, windows, cache_precision=held))[:, :-1].double()

    floats = by_engine("float")
    for held in CACHES:
        found, log = measured.caches[held], by_engine(held)
        np.testing.assert_allclose(found.loss, -log.gather(2, following).flatten().numpy(), atol=2e-4)
        kl = (floats.exp() * (floats - log)).sum(-1).flatten().numpy()
        np.testing.assert_allclose(found.kl, kl, atol=2e-5)
    assert 0 < measured.caches["int8"].kl_mean < measured.caches["int4"].kl_mean / 10


def test_measuring_caches_changes_no_other_figure(found: Comparison, measured: Comparison) -> None:
    for name, other in found.others.items():
        np.testing.assert_array_equal(measured.others[name].kl, other.kl)
        assert measured.others[name].layer_error == other.layer_error
    said = measured.evaluation("two")
    assert found.evaluation("two") == said.model_copy(update={"caches": None, "recommended_cache": None})
    assert said.caches is not None
    assert [one.precision for one in said.caches] == ["int8", "int4"]
    for one in said.caches:
        assert one.increase == pytest.approx(one.perplexity / said.after.perplexity - 1)
    assert said.recommended_cache == "int4"


def test_a_cache_that_gives_no_numbers_is_not_recommended(folders: tuple[Path, Path], tokens: Tokens) -> None:
    made = open_checkpoint(folders[0])
    result = compare(model(folders[1]), {"one": StreamedModel(made)}, tokens)
    bad = replace(result.others["one"], loss=np.full_like(result.loss, np.nan))
    said = replace(result, caches={"int8": bad, "int4": bad}, cached="one").evaluation("one")
    assert said.recommended_cache == "float"
    assert said.caches is not None
    assert said.caches[0].increase == said.caches[0].perplexity == 1e18
