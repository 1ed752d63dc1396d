"""Fetching beside each other, and in spite of sudden death: processes that share a folder, or are killed in it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from plimsoll.checkpoint import lock
from plimsoll.checkpoint.complete import HIDDEN, read_marker
from plimsoll.checkpoint.lock import FolderLock
from tests.support.commands import environment, finished, started
from tests.support.hub import Hub, running_hub

#: Lines that a process runs first, so that it takes another for dead after a moment.
IMPATIENT = "import plimsoll.checkpoint.lock as lock; lock.BEAT, lock.STALE = 0.05, 0.6"


def whole(folder: Path, files: dict[str, bytes]) -> bool:
    """Whether the folder says that it is whole; and then it is."""
    if read_marker(folder) is None:
        return False
    assert {name: (folder / name).read_bytes() for name in files} == files
    return True


def test_processes_that_start_together_fetch_once(tmp_path: Path, folder_files: dict[str, bytes]) -> None:
    with running_hub(Hub({"org/tiny": folder_files})) as hub:
        into = tmp_path / "into"
        together = [
            started(["fetch", "hf://org/tiny", "--into", str(into)], tmp_path, HF_ENDPOINT=hub.url) for _ in range(4)
        ]
        for process in together:
            _, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
        assert whole(into, folder_files)
        assert {name: hub.sent[name] for name in folder_files} == {n: len(data) for n, data in folder_files.items()}
        assert {path.name for path in (into / HIDDEN).iterdir()} == {"complete.json", "plan.json"}


def test_who_is_killed_is_followed_by_who_waits(tmp_path: Path, folder_files: dict[str, bytes]) -> None:
    name = max(folder_files, key=lambda name: len(folder_files[name]))
    with running_hub(Hub({"org/tiny": folder_files}, gate={name: 70_000})) as hub:
        command = ["fetch", "hf://org/tiny", "--into", str(tmp_path / "into")]
        first = started(command, tmp_path, HF_ENDPOINT=hub.url)
        assert hub.reached.wait(60)
        second = started(command, tmp_path, HF_ENDPOINT=hub.url)
        first.kill()
        first.communicate()
        _, err = second.communicate(timeout=60)
        assert second.returncode == 0, err
        hub.opened.set()
        assert whole(tmp_path / "into", folder_files)
        resumed = [int(asked.removeprefix("bytes=").split("-")[0]) for asked in hub.ranges[name]]
        assert resumed[0] == 0
        assert len(resumed) == 2


def test_who_is_paused_is_overtaken_and_harms_nothing_on_waking_up(
    tmp_path: Path, folder_files: dict[str, bytes]
) -> None:
    name = max(folder_files, key=lambda name: len(folder_files[name]))
    with running_hub(Hub({"org/tiny": folder_files}, gate={name: 70_000})) as hub:
        into = tmp_path / "into"
        command = ["fetch", "hf://org/tiny", "--into", str(into)]
        first = started(command, tmp_path, code=IMPATIENT, HF_ENDPOINT=hub.url)
        assert hub.reached.wait(60)
        first.send_signal(signal.SIGSTOP)
        second = finished(command, tmp_path, code=IMPATIENT, HF_ENDPOINT=hub.url)
        assert second.returncode == 0, second.stderr
        assert whole(into, folder_files)
        hub.opened.set()
        first.send_signal(signal.SIGCONT)
        _, err = first.communicate(timeout=60)
        assert first.returncode == 0, err
        assert whole(into, folder_files)
        assert not (into / HIDDEN / "lock").exists()


#: Fetches a mounted folder in tiny pieces, again and again, and kills itself at the n-th thing that it does with files.
DIE_AT_EACH_STEP = """
import json, os, signal, sys
from pathlib import Path
import plimsoll.checkpoint.fetching as fetching
import plimsoll.checkpoint.folder as folder
import plimsoll.checkpoint.open, plimsoll.checkpoint.huggingface, plimsoll.checkpoint.lock as lock

source, into, report = sys.argv[1:]
folder.PIECE = fetching.PIECE = 1 << 20
fetching.AT_ONCE = 1
count, limit = 0, None

def step(event, arguments):
    global count
    if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate", "os.link") and into in str(arguments):
        count += 1
        if limit is not None and count >= limit:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(step)
ends = []
for number in range(1, 1000):
    child = os.fork()
    if child == 0:
        count, limit = 0, number
        fetching.Fetcher("file://" + source, Path(into)).run()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    marked = Path(into, ".plimsoll", "complete.json").exists()
    ends.append([status, marked])
    if marked:
        from plimsoll.checkpoint.complete import read_marker
        marker = read_marker(Path(into))
        for name, size in marker.files:
            assert Path(into, name).read_bytes() == Path(source, name).read_bytes(), name
    if sys.stdin.readline().strip() == "fresh":
        import shutil
        shutil.rmtree(into, ignore_errors=True)
    if status == 0:
        break
json.dump(ends, open(report, "w"))
"""


def die_at_each_step(tmp_path: Path, source: Path, answers: str) -> list[list[int]]:
    report = tmp_path / "report"
    done = subprocess.run(
        [sys.executable, "-c", DIE_AT_EACH_STEP, str(source), str(tmp_path / "into"), str(report)],
        env=environment(tmp_path, {}), input=answers, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ends: list[list[int]] = json.loads(report.read_text())
    return ends


def test_killed_at_any_step_a_folder_is_never_half_believed(
    tmp_path: Path, folder: Path, folder_files: dict[str, bytes]
) -> None:
    ends = die_at_each_step(tmp_path, folder, "fresh\n" * 1000)
    assert len(ends) > 3 * len(folder_files)
    assert all(os.WTERMSIG(status) == signal.SIGKILL for status, _ in ends[:-1])
    assert ends[-1] == [0, True]
    # The marker is the last step but the lock's removal.
    assert sum(marked for _, marked in ends) < 8


def test_killed_at_every_step_in_turn_it_still_arrives(
    tmp_path: Path, folder: Path, folder_files: dict[str, bytes]
) -> None:
    # Each attempt finds what the one before left, and gets a step further than that one did.
    ends = die_at_each_step(tmp_path, folder, "go on\n" * 1000)
    assert ends[-1] == [0, True]
    assert len(ends) > 10
    assert whole(tmp_path / "into", folder_files)
    assert not list((tmp_path / "into" / HIDDEN).glob("*.part"))


class TestTheLock:
    def test_only_one_holds_it(self, tmp_path: Path) -> None:
        first, second = FolderLock(tmp_path / "lock", lambda: {"bytes": 7}), FolderLock(tmp_path / "lock")
        assert first.acquire()
        assert not second.acquire()
        assert second.told()["bytes"] == 7
        second.release()
        assert not second.acquire(), "who does not hold it cannot give it up"
        first.release()
        assert second.acquire()
        second.release()
        assert not (tmp_path / "lock").exists()

    def test_an_owner_that_lost_it_knows(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lock, "BEAT", 0.02)
        first, second = FolderLock(tmp_path / "lock"), FolderLock(tmp_path / "lock")
        assert first.acquire()
        (tmp_path / "lock").unlink()
        assert second.acquire()
        assert first.lost.wait(10)
        first.release()
        assert (tmp_path / "lock").exists(), "it is another's now"
        second.release()

    def test_a_text_that_makes_no_sense_is_waited_for_and_then_cleared(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lock, "STALE", 0.1)
        for text in (b"", b"{", b"[]", b'{"owner": 1, "place": 7}', b"\xff" * 1000):
            (tmp_path / "lock").write_bytes(text)
            waiting = FolderLock(tmp_path / "lock")
            assert not waiting.acquire()
            while not waiting.acquire():
                pass
            waiting.release()
