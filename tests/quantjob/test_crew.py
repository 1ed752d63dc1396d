"""Searches of a layer shared by processes: the same bytes for any number of them, whatever happens to one."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from plimsoll.api.errors import DoesNotFitError, SpecError
from plimsoll.api.facts import facts_from_config
from plimsoll.checkpoint import open_checkpoint
from plimsoll.quantjob import crew as crew_module
from plimsoll.quantjob.crew import Crew, spread
from plimsoll.quantjob.data import tokens_of
from plimsoll.quantjob.devices import devices_of
from plimsoll.quantjob.failures import WorkersLostError
from plimsoll.quantjob.gram import Gram
from plimsoll.quantjob.preflight import preflight
from plimsoll.quantjob.recipe import Recipe
from plimsoll.quantjob.rounding import Rounding
from plimsoll.quantjob.search import Judge
from plimsoll.quantjob.walk import Walk, WalkPlan
from plimsoll.quantjob.workers import Workers
from tests.support.checkpoints import VOCAB_SIZE, make_checkpoint
from tests.support.miniature import CONFIG
from tests.support.quantizing import contents, job_options

TOKENS = tokens_of(torch.randint(0, VOCAB_SIZE, (4, 48), generator=torch.Generator().manual_seed(0)).numpy(), "random")


class StoppedError(Exception):
    """Of a walk that is interrupted."""


def walk(source: Path, folder: Path, crew: Crew | None, on_layer: Callable[[int], None] = lambda done: None) -> None:
    """All layers that are left."""
    recipe = Recipe(group_size=32, format="compressed-tensors")
    one = Walk(open_checkpoint(source), recipe, TOKENS, folder, WalkPlan(), Workers(2), crew=crew)
    one.run(lambda done, of, seconds: on_layer(done))


def test_any_number_of_processes_writes_the_bytes_of_one_though_they_are_lost_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer by three; one by two, after a kill; one by two devices, which are then lost."""
    source = make_checkpoint(tmp_path / "model", num_hidden_layers=3, intermediate_size=544, tokenizer=False)
    walk(source, tmp_path / "alone", None)
    shared = tmp_path / "shared"
    said: list[str] = []
    three, devices = Crew(3, Workers(3), said.append), Crew(2, Workers(2), said.append, ("cpu", "cpu"))
    assert (devices.size, devices.threads) == (2, 2)
    seen: list[int] = []

    def strike(done: int) -> None:
        seen.append(three.size)
        if done == 1:
            os.kill(three._members[1].pid, signal.SIGKILL)
        elif done == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        walk(source, shared, three, strike)
    assert seen == [3, 3, 2]
    # What the others took is known: all of torch.
    assert three.peak_bytes > 2 * (50 << 20)
    three.rest()

    walk(source, shared, devices)
    assert contents(shared / "output") == contents(tmp_path / "alone" / "output")
    monkeypatch.setattr(crew_module, "STILL_SECONDS", 0.5)
    os.kill(devices._members[0].pid, signal.SIGSTOP)
    os.kill(devices._members[1].pid, signal.SIGKILL)
    with pytest.raises(WorkersLostError, match="goes on at the layer"):
        devices.share(Judge([], Rounding(4, 32), Gram(32, 32)), [torch.ones(32), torch.ones(32)])
    assert [note.partition(":")[0] for note in said] == [
        "worker 3 was killed by signal 9", "worker 1 used no processor time for 0 s", "worker 2 was killed by signal 9",
    ]  # fmt: skip


def test_a_share_is_about_as_large_as_any_other() -> None:
    sizes = [288, 288, 192, 192, 7]
    parts = spread(sizes, 3)
    assert sorted(place for part in parts for place in part) == [0, 1, 2, 3, 4]
    assert sorted(sum(sizes[place] for place in part) for part in parts) == [288, 295, 384]
    assert spread([5], 3) == [[0], [], []]


def test_workers_count_in_the_memory_and_go_with_a_search() -> None:
    facts = facts_from_config(CONFIG)

    def found(**more: Any) -> Any:
        asked = {"memory": 8 << 30, "batch": None, "threads": 4, "recipe": Recipe(group_size=64)}
        return preflight(facts, samples=8, length=256, **(asked | more))

    alone, four = found().needs.walk, found(workers=4).needs.walk
    assert four > alone + 3 * (288 << 20)
    with pytest.raises(DoesNotFitError, match=r"fits with: --workers 2,"):
        found(memory=(alone + four) // 2, workers=4)
    with pytest.raises(SpecError, match=r"--workers: goes with method awq.*found 2.*--method awq"):
        found(recipe=Recipe("rtn", group_size=64), workers=2)


def test_devices_that_are_not_there_are_refused_with_the_way_out(tmp_path: Path) -> None:
    options = job_options(tmp_path, tmp_path, tmp_path, device="cuda", recipe=Recipe("rtn", group_size=32))
    with pytest.raises(SpecError, match=r"--device: goes with method awq.*Leave it out"):
        devices_of(options)
    if not torch.cuda.device_count():
        with pytest.raises(SpecError, match=r"--device: finds no CUDA device.*--device cpu"):
            devices_of(replace(options, recipe=Recipe(group_size=32)))
    with pytest.raises(SpecError, match="--device"):
        job_options(tmp_path, tmp_path, tmp_path, device="gpu")
    with pytest.raises(SpecError, match=r"--device-memory: goes with --device cuda.*Leave it out"):
        job_options(tmp_path, tmp_path, tmp_path, device_memory=1 << 30)


@pytest.mark.parametrize(("workers", "found"), [(None, 3), (1, 1), (2, 2), (3, 3), (4, "--workers 3")])
def test_each_worker_gets_a_device_of_its_own(
    workers: int | None, found: int | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    recipe = Recipe(group_size=32)
    options = job_options(tmp_path, tmp_path, tmp_path, device="cuda", workers=workers, recipe=recipe)
    if isinstance(found, str):
        with pytest.raises(SpecError, match=f"must be at most 3, the CUDA devices of this machine.*{found}"):
            devices_of(options)
    else:
        assert devices_of(options) == tuple(f"cuda:{index}" for index in range(found))


def test_a_device_with_less_than_its_share_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    facts, asked = (
        facts_from_config(CONFIG),
        {"samples": 8, "length": 256, "threads": 4, "recipe": Recipe(group_size=64)},
    )
    has = SimpleNamespace(total_memory=700 << 20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: has)
    with pytest.raises(DoesNotFitError, match=r"--device: needs \S+ MiB on each device .* and cuda:0 has 700.0 MiB"):
        preflight(facts, memory=64 << 30, batch=None, devices=("cuda:0", "cuda:1"), **asked)
    has.total_memory = 24 << 30
    found = preflight(facts, memory=64 << 30, batch=None, devices=("cuda:0", "cuda:1"), **asked)
    with pytest.raises(DoesNotFitError, match=r"--device-memory: .*the line has 700.0 MiB\n.*--device-memory \d+Mi"):
        preflight(facts, memory=64 << 30, batch=None, devices=("cuda:0",), device_memory=700 << 20, **asked)
    # Each has a process of the host.
    with pytest.raises(DoesNotFitError, match=r"--memory: .*\n.*--workers 1, or "):
        preflight(facts, memory=found.needs.memory - (64 << 20), batch=None, devices=("cuda:0", "cuda:1"), **asked)


@pytest.mark.parametrize(
    ("workers", "threads", "words"), [(0, None, "must be 1 to 64"), (3, 2, "--workers 2, or --threads 3")]
)
def test_workers_without_threads_are_refused(workers: int, threads: int | None, words: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=words):
        job_options(tmp_path, tmp_path, tmp_path, workers=workers, threads=threads)
