"""From a checkpoint to an output folder: what is written, what a kill costs, what is refused."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plimsoll.api.cache_loss import recommended_cache
from plimsoll.api.errors import CheckpointError, DoesNotFitError, PlimsollError, SpecError
from plimsoll.api.families.registry import all_families
from plimsoll.api.gate import Limits
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.lock import FolderLock
from plimsoll.checkpoint.quantized.manifest import verify
from plimsoll.quantjob import job, merge
from plimsoll.quantjob.data import Tokens, tokens_of
from plimsoll.quantjob.evaluation import compare
from plimsoll.quantjob.failures import reason_of
from plimsoll.quantjob.job import QuantizeJob
from plimsoll.quantjob.preflight import check_room, preflight
from plimsoll.quantjob.progress import Tracker
from plimsoll.quantjob.recipe import Recipe
from plimsoll.quantjob.rounding import Rounding
from plimsoll.quantjob.streamed import StreamedModel
from plimsoll.quantjob.tokens import TokenPlan
from plimsoll.quantjob.walk import Walk, WalkPlan
from plimsoll.quantjob.workers import Workers
from tests.support.checkpoints import VOCAB_SIZE, make_checkpoint
from tests.support.outliers import inject_outliers
from tests.support.quantizing import contents, job_options, run_job, write_text

ROOT = Path(__file__).parents[2]


def random_tokens(seed: int, windows: int, length: int = 64) -> Tokens:
    ids = torch.randint(0, VOCAB_SIZE, (windows, length), generator=torch.Generator().manual_seed(seed))
    return tokens_of(ids.numpy(), "random")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "ships.txt")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "model", dtype="bfloat16", num_hidden_layers=3)


@pytest.fixture(scope="module")
def finished(tiny: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output that nothing disturbed."""
    out = tmp_path_factory.mktemp("finished") / "out"
    run_job(job_options(tiny, out, text))
    return out


@pytest.mark.parametrize(
    "architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "InternLM2ForCausalLM"]
)
def test_scales_recover_what_large_channels_cost_rounding(architecture: str, tmp_path: Path) -> None:
    fused = architecture == "InternLM2ForCausalLM"
    folder = make_checkpoint(
        tmp_path / "model", "LlamaForCausalLM" if fused else architecture, hidden_size=128, intermediate_size=192,
        initializer_range=0.25, tokenizer=False,
    )  # fmt: skip
    weights = load_file(folder / "model.safetensors")
    calm = {name: value * 0.3 if value.ndim == 2 else value for name, value in weights.items()}
    save_file(calm, folder / "model.safetensors", metadata={"format": "pt"})
    inject_outliers(folder)
    if fused:
        from tests.support.checkpoints import pack_internlm2

        folder = pack_internlm2(folder, tmp_path / "fused")
    checkpoint, workers = open_checkpoint(folder), Workers(2)
    recipe = Recipe(group_size=32, format="compressed-tensors")
    walk = Walk(checkpoint, recipe, random_tokens(0, 12), tmp_path / "work", WalkPlan(4), workers)
    walk.run()
    config = json.loads((folder / "config.json").read_text())
    from plimsoll.quantjob.papers import write_papers

    write_papers(tmp_path / "work" / "output", checkpoint, recipe, walk.state.shards)
    assert config["architectures"] == [architecture]
    others = {
        "nearest": StreamedModel(checkpoint, round_to=Rounding(4, 32), workers=workers),
        "ours": StreamedModel(open_checkpoint(tmp_path / "work" / "output"), workers=workers),
    }
    found = compare(StreamedModel(checkpoint, workers=workers), others, random_tokens(1, 4)).others
    assert found["nearest"].kl_mean > 0.1
    assert found["ours"].kl_mean < 0.15 * found["nearest"].kl_mean


def test_the_output_is_a_whole_checkpoint_with_a_manifest(tiny: Path, finished: Path) -> None:
    manifest = verify(finished)
    assert {file.name for file in manifest.files} == set(os.listdir(finished)) - {
        "plimsoll-manifest.json", "report.html", "report.json",
    }  # fmt: skip
    assert manifest.gate == "none"
    assert manifest.evaluation["roundToNearest"]["klMean"] > 0
    checkpoint = open_checkpoint(finished)
    assert checkpoint.facts.quantization is not None
    assert (finished / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()
    assert checkpoint.tensors["model.layers.2.mlp.down_proj.weight"].dtype == "W4"
    kept = "model.embed_tokens.weight"
    assert (checkpoint.read(kept).data == open_checkpoint(tiny).read(kept).data).all()


@pytest.mark.parametrize("method", ["rtn", "int8"])
def test_methods_without_text_write_what_rounding_on_reading_gives(
    method: str, tiny: Path, text: Path, tmp_path: Path
) -> None:
    bits, group = (8, 0) if method == "int8" else (4, 32)
    recipe = Recipe(method, bits, group, "compressed-tensors", search_scale=False, clip=False, compensate=False)  # type: ignore[arg-type]
    plan = TokenPlan(str(text), 0, 48, 3)
    outcome = run_job(job_options(tiny, tmp_path / "out", text, recipe=recipe, plan=plan))
    assert outcome.manifest.tokens is None
    checkpoint = open_checkpoint(tmp_path / "out")
    rounded = StreamedModel(open_checkpoint(tiny), round_to=Rounding(bits, group)).layer(1)
    written = StreamedModel(checkpoint).layer(1)
    for role, values in rounded.items():
        assert torch.equal(written[role], values), role


def test_bits_depend_on_neither_threads_nor_batch_nor_memory(tiny: Path, tmp_path: Path) -> None:
    found = []
    for name, threads, plan in (
        ("one", 1, WalkPlan(1, in_memory=False)), ("three", 3, WalkPlan(4, in_memory=True)),
    ):  # fmt: skip
        walk = Walk(
            open_checkpoint(tiny), Recipe(group_size=32), random_tokens(0, 5), tmp_path / name, plan, Workers(threads),
            shard_bytes=1,
        )  # fmt: skip
        walk.run()
        found.append(contents(tmp_path / name / "output"))
    assert found[0] == found[1]
    assert list(found[0]) == [f"model-{number:05}-of-00004.safetensors" for number in range(1, 5)]


def test_a_job_killed_at_any_file_goes_on_to_the_same_bytes(
    tiny: Path, text: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.quantizing", str(tiny), str(out), str(text)], capture_output=True,
        text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    left = json.loads(done.stdout)
    assert len(left) >= 10
    assert left == sorted(left), "no layer that was quantized or measured is so twice"
    # Three models of three layers are compared.
    assert any(0 < compared < 9 for _, compared, _ in left)
    ours, undisturbed = dict(contents(out)), dict(contents(finished))
    assert ours == undisturbed
    assert "report.json" in ours


def test_a_finished_output_is_done_at_once_and_its_gate_is_held_against_new_limits(
    tiny: Path, text: Path, finished: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.glob("*.safetensors")}
    tracker = Tracker()
    strict = job_options(tiny, finished, text, limits=Limits(kl_divergence=1e-9))
    assert run_job(strict, tracker).reasons
    assert (tracker.now.phase, tracker.now.reason) == ("Failed", "GateFailed")
    with pytest.raises(CheckpointError, match="failed its gate"):
        open_checkpoint(finished)
    assert not run_job(job_options(tiny, finished, text)).reasons
    open_checkpoint(finished)
    assert {path: path.stat().st_mtime_ns for path in finished.glob("*.safetensors")} == before


def _nan(folder: Path) -> None:
    _change(folder, lambda tensor: tensor.index_fill_(0, torch.tensor([3]), float("nan")))


def _change(folder: Path, how: Callable[[torch.Tensor], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    how(weights["model.layers.2.mlp.down_proj.weight"])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_weight_that_is_no_number_stops_the_walk_there_and_names_it(text: Path, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", num_hidden_layers=3)
    _nan(source)
    options = job_options(source, tmp_path / "out", text)
    with pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.down_proj.*not finite"):
        run_job(options)
    assert os.listdir(tmp_path / "out") == [".partial"]


def test_other_work_in_the_folder_is_refused(tiny: Path, text: Path, finished: Path, tmp_path: Path) -> None:
    """A changed source, another recipe, other text, files of somebody else's."""
    options = job_options(tiny, tmp_path / "out", text)
    work = tmp_path / "out" / ".partial"
    Walk(open_checkpoint(tiny), options.recipe, random_tokens(0, 2), work, WalkPlan(), Workers(1)).run()
    with pytest.raises(CheckpointError, match="unfinished work with other calibration tokens"):
        run_job(options)
    changed = make_checkpoint(tmp_path / "model", dtype="bfloat16", num_hidden_layers=3)
    _change(changed, lambda tensor: tensor.mul_(1.01))
    for other in (
        job_options(changed, finished, text),
        job_options(tiny, finished, text, recipe=Recipe(group_size=32, clip=False)),
    ):
        with pytest.raises(SpecError, match="holds another output") as caught:
            run_job(other)
        assert reason_of(caught.value) == "OutputTaken"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letters.txt").write_text("dear")
    with pytest.raises(SpecError, match=r"other files \(letters\.txt\)"):
        run_job(replace(options, out=tmp_path / "mine"))
    assert os.listdir(tmp_path / "mine") == ["letters.txt"]


@pytest.mark.parametrize(
    ("place", "layers", "words"),
    [
        (".partial/output/.part-00003-of-00004.safetensors.partial", 1, r"the disk is full.*goes on from the layer"),
        (".report.json.tmp", 3, r"the report cannot be written: No space left.*Make room"),
    ],
)
def test_a_full_disk_loses_nothing_that_was_done(
    place: str, layers: int, words: str, tiny: Path, text: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    aside = out / place
    aside.parent.mkdir(parents=True)
    # A device that is always full stands where the third shard, or the report, would be written.
    aside.symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=words) as caught:
        run_job(job_options(tiny, out, text))
    assert reason_of(caught.value) == "DiskFull"
    assert json.loads((out / ".partial" / "state.json").read_text())["layers"] == layers
    # What a kill leaves there.
    aside.unlink(missing_ok=True)
    aside.write_text("half of it")
    run_job(job_options(tiny, out, text))
    assert contents(out) == contents(finished)


def test_a_place_that_cannot_be_written_and_a_shard_that_is_cut_are_named(
    tiny: Path, text: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PlimsollError, match="cannot be written: Not a directory"):
        run_job(job_options(tiny, tmp_path / "file" / "out", text))
    source = make_checkpoint(tmp_path / "model", num_hidden_layers=3)
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        run_job(job_options(source, tmp_path / "out", text))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(group_size=32), Recipe("rtn", group_size=32, format="compressed-tensors"),
        Recipe("int8", 8, 0, "compressed-tensors"),
    ],
)  # fmt: skip
def test_room_that_cannot_be_enough_is_refused_and_room_that_may_be_is_told_of(
    recipe: Recipe, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(tiny)
    found = preflight(checkpoint.facts, recipe, 6, 48, 3, memory=2 << 30, batch=None, threads=1)
    tokens = random_tokens(0, 6, 48)
    at_once: list[int] = []

    def look(done: int, of: int, seconds: float) -> None:
        at_once.append(sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()))

    def copied(*arguments: Any) -> None:
        copy(*arguments)
        look(0, 0, 0.0)

    # A piece that was copied lies there twice until it is removed.
    copy = merge._copy
    monkeypatch.setattr(merge, "_copy", copied)
    Walk(checkpoint, recipe, tokens, tmp_path, found.plan, Workers(1)).run(look)
    written = sum(path.stat().st_size for path in (tmp_path / "output").iterdir())
    states = 4 * 48 * checkpoint.facts.hidden_size
    models = 5 if recipe.method == "awq" else 4
    assert found.least_disk <= max(max(at_once), written + (models + 1) * 3 * states) <= found.needs.disk
    assert check_room(found, tmp_path, found.needs.disk, 0) is None
    assert check_room(found, tmp_path, 0, found.needs.disk) is None
    told = check_room(found, tmp_path, found.least_disk - 1000, 1000)
    assert told is not None
    assert re.search(r"has .* free, and as much as .* more may be written there", told)
    with pytest.raises(DoesNotFitError, match=r"(?s)free, and at least .* more are written.*fits with: .* free there"):
        check_room(found, tmp_path, found.least_disk - 1001, 1000)


def test_room_for_the_shard_that_a_merge_writes_twice_is_counted(tiny: Path, tmp_path: Path) -> None:
    recipe = Recipe("rtn", group_size=32, format="compressed-tensors")
    checkpoint = open_checkpoint(tiny)
    found = preflight(checkpoint.facts, recipe, 0, 48, 0, memory=2 << 30, batch=None, threads=1)
    walk = Walk(checkpoint, recipe, None, tmp_path, found.plan, Workers(1), shard_bytes=1)
    walk.run()
    largest = max(sum(shard.tensors.values()) for shard in walk.state.shards)
    written = sum(sum(shard.tensors.values()) for shard in walk.state.shards)
    # Norms and zero points in whole bytes are within a tenth.
    assert found.needs.scratch == pytest.approx(largest, rel=0.1)
    assert found.least_disk == pytest.approx(written + largest, rel=0.1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"recipe": Recipe(group_size=64)}, r"does not divide the 96 columns of mlp\.down_proj.*Use 32"),
        ({"memory": 100 << 20}, r"--memory.*the process itself"),
        ({"limits": Limits(kl_divergence=1.0), "plan": TokenPlan("x", 6, 48, 0)}, "a limit is set"),
        ({"plan": TokenPlan("/nowhere.txt", 6, 48, 3)}, "calib-dataset"),
        ({"plan": TokenPlan("x", 6, 100000, 3)}, "256 positions"),
    ],
)
def test_what_cannot_be_is_refused_before_a_layer_is_read(
    overrides: dict[str, Any], message: str, tiny: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises((SpecError, DoesNotFitError), match=message):
        run_job(job_options(tiny, tmp_path / "out", text, **overrides))


def test_an_architecture_without_groupings_is_rounded_to_nearest_with_a_warning(
    tiny: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = all_families()
    bare = replace(known["LlamaForCausalLM"], groupings=())
    monkeypatch.setitem(known, "LlamaForCausalLM", bare)  # type: ignore[arg-type]
    said: list[str] = []
    options = job_options(tiny, tmp_path / "out", text)
    outcome = QuantizeJob(options, Tracker(), said.append).run()
    assert any("no groupings are known for LlamaForCausalLM" in note for note in said)
    figures = outcome.manifest.evaluation
    assert figures["after"]["klMean"] == pytest.approx(figures["roundToNearest"]["klMean"], rel=1e-3)


def test_progress_that_cannot_be_kept_stops_nothing(tmp_path: Path) -> None:
    """A folder that became read-only, or is none any more: the job itself has words for it."""
    tracker = Tracker()
    tracker.keep_in(tmp_path / "work")
    (tmp_path / "work").write_text("")
    tracker.move("Quantizing", 0.5)
    assert tracker.now.phase == "Quantizing"


def test_two_jobs_do_not_work_in_one_folder(
    tiny: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "PATIENCE", 0.0)
    options = job_options(tiny, tmp_path / "out", text)
    (tmp_path / "out" / ".partial").mkdir(parents=True)
    lock = FolderLock(tmp_path / "out" / ".partial" / "lock")
    assert lock.acquire()
    try:
        with pytest.raises(PlimsollError, match="another process works here") as caught:
            run_job(options)
        assert reason_of(caught.value) == "OutputBusy"
    finally:
        lock.release()


def test_a_recipe_that_makes_no_sense_names_the_option() -> None:
    for values, field in (
        ({"method": "gptq"}, "--method"), ({"bits": 3}, "--w-bits"), ({"group_size": 48}, "--w-group-size"),
        ({"format": "exl2"}, "--format"), ({"seed": -1}, "--seed"),
        ({"method": "int8", "bits": 8, "group_size": 0}, "--format"),
        ({"method": "int8", "format": "compressed-tensors", "group_size": 0}, "--w-bits"),
        ({"method": "int8", "bits": 8, "format": "compressed-tensors"}, "--w-group-size"),
    ):  # fmt: skip
        with pytest.raises(SpecError) as caught:
            Recipe(**values)  # type: ignore[arg-type]
        assert caught.value.field == field


def test_what_caches_cost_is_in_the_manifest_and_among_the_facts(finished: Path) -> None:
    said = verify(finished).evaluation
    checkpoint = open_checkpoint(finished)
    assert checkpoint.facts.measured_caches == {one["precision"]: one["increase"] for one in said["caches"]}
    assert set(checkpoint.facts.measured_caches) == {"int8", "int4"}
    assert said["recommendedCache"] == recommended_cache(checkpoint.facts.measured_caches)
