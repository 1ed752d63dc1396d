"""A second run in a folder: it ends with what the first one finished, and draws no window of text twice."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from plimsoll.checkpoint.lock import FolderLock
from plimsoll.quantjob import job, selftext
from plimsoll.quantjob.job import Outcome
from plimsoll.quantjob.recipe import Recipe
from plimsoll.quantjob.selftext import self_tokens
from plimsoll.quantjob.tokens import TokenPlan
from tests.support.checkpoints import make_checkpoint
from tests.support.quantizing import contents, job_options, run_job

ROUNDED = Recipe("rtn", 4, 32, "compressed-tensors", search_scale=False, clip=False, compensate=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("second") / "model", num_hidden_layers=1)


def test_a_run_that_waited_for_another_ends_with_what_that_one_finished(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = job_options(tiny, tmp_path / "out", tiny, recipe=ROUNDED, plan=TokenPlan("self", 0, 48, 0))
    held = FolderLock(tmp_path / "out" / ".partial" / "lock")
    held.path.parent.mkdir(parents=True)
    assert held.acquire()
    first: list[tuple[Outcome, dict[str, bytes]]] = []

    def finish(seconds: float) -> None:
        """The other run ends while this one waits, and takes the folder of the lock with it."""
        held.release()
        first.append((run_job(options), dict(contents(options.out))))

    monkeypatch.setattr(job, "time", SimpleNamespace(monotonic=time.monotonic, sleep=finish))
    second = run_job(options)
    ((found, files),) = first
    assert second == found
    assert dict(contents(options.out)) == files
    assert ".partial" not in os.listdir(options.out)


class Killed(BaseException):
    """Ends a run as a signal does."""


@pytest.mark.parametrize("cut", [0, 7], ids=["whole", "cut in its last line"])
def test_windows_that_were_drawn_before_a_kill_are_not_drawn_again(
    tiny: Path, tmp_path: Path, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selftext, "SAMPLED_AT_ONCE", 16)
    wanted = [(20, 3)]
    (undisturbed,) = self_tokens(tiny, wanted, 16, threads=1)
    drawn = tmp_path / "sampled-3.jsonl"

    def kill(done: int, of: int) -> None:
        # The first sixteen are finished, of the others some tokens are there.
        if done > 16 * 16 + 8:
            raise Killed

    with pytest.raises(Killed):
        self_tokens(tiny, wanted, 16, threads=1, folder=tmp_path, key="model", progress=kill)
    kept = len(drawn.read_text().splitlines()) - 1
    assert 16 <= kept < 20
    if cut:
        os.truncate(drawn, drawn.stat().st_size - cut)
    seen: list[int] = []
    (again,) = self_tokens(
        tiny, wanted, 16, threads=1, folder=tmp_path, key="model", progress=lambda done, of: seen.append(done)
    )
    assert kept * 16 - (16 if cut else 0) <= seen[0] < (kept + 1) * 16
    assert (again.windows == undisturbed.windows).all()
    (other,) = self_tokens(
        tiny, [(1, 3)], 16, threads=1, folder=tmp_path, key="another model", progress=lambda *_: None
    )
    assert (other.windows == undisturbed.windows[:1]).all()
    assert len(drawn.read_text().splitlines()) == 2, "windows of another model are not taken over"
