"""`plimsoll fetch`: a folder is whole or has no marker; nothing comes twice; whatever fails says why."""

import errno
import json
import os
import shutil
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from plimsoll.api.errors import CheckpointError
from plimsoll.api.group import POD
from plimsoll.checkpoint import fetching
from plimsoll.checkpoint.complete import HIDDEN, read_marker
from plimsoll.checkpoint.fetching import Fetcher
from plimsoll.checkpoint.folder import FolderRemote
from plimsoll.checkpoint.inspecting import inspect_source
from plimsoll.checkpoint.open import open_checkpoint
from plimsoll.checkpoint.remote import RemoteFile
from tests.support.commands import started
from tests.support.forked import finished
from tests.support.hub import Hub, running_hub
from tests.support.s3 import SECRET, Store


def held(folder: Path) -> dict[str, bytes]:
    """Everything in a folder but what is ours."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and HIDDEN not in path.parts
    }


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in (folder / HIDDEN).iterdir()} - {"complete.json", "plan.json"}


def fetch(home: Path, source: str, into: Path, *options: str, **environment: str) -> str:
    """Its words: on stdout when it worked, else the error."""
    done = finished(["fetch", source, "--into", str(into), *options], home, **environment)
    assert "Traceback" not in done.stderr
    for secret in (SECRET, "hf_secret"):
        assert secret not in done.stdout + done.stderr
    return done.stdout if done.returncode == 0 else done.stderr


EXTRAS = {"pytorch_model.bin": b"pickle", "modeling.py": b"code", "consolidated.safetensors": b"twice"}


def test_a_mount_a_hub_and_a_store_give_the_same_folder(
    tmp_path: Path, folder: Path, folder_files: dict[str, bytes], store: Store
) -> None:
    source = tmp_path / "source"
    shutil.copytree(folder, source)
    for name, data in EXTRAS.items():
        (source / name).write_bytes(data)
    store.put("models", {f"tiny/{name}": data for name, data in (folder_files | EXTRAS).items()})
    digest = inspect_source(f"file://{folder}").digest
    with running_hub(Hub({"org/tiny": folder_files | EXTRAS | {"sub/x.json": b"{}"}})) as hub:
        for number, (address, environment) in enumerate(
            [
                (f"file://{source}", {}),
                ("s3://models/tiny", store.environment),
                ("hf://org/tiny@main", {"HF_ENDPOINT": hub.url}),
            ]
        ):
            into = tmp_path / str(number) / "deep"
            words = fetch(tmp_path, address, into, **environment)
            assert "whole" in words
            assert held(into) == folder_files
            assert leftovers(into) == set()
            marker = read_marker(into)
            assert marker is not None
            assert marker.digest == digest
            assert open_checkpoint(into).facts == open_checkpoint(folder).facts
        sent = hub.sent.total()
        asked = len(hub.requests)
        assert "whole" in fetch(tmp_path, "hf://org/tiny@main", into, HF_ENDPOINT=hub.url)
        assert "whole" in fetch(tmp_path, f"hf://org/tiny@{hub.commit('org/tiny')}", into, HF_ENDPOINT=hub.url)
        assert (hub.sent.total(), len(hub.requests)) == (sent, asked), "the marker answers alone"
        assert sent == sum(map(len, folder_files.values()))
    assert not (tmp_path / ".cache").exists(), "nothing is kept twice"


def test_a_gguf_file_keeps_its_place(tmp_path: Path, gguf: Path, store: Store) -> None:
    data = gguf.read_bytes()
    store.put("models", {f"quants/{gguf.name}": data, "quants/other.gguf": b""})
    with running_hub(Hub({"org/quants": {f"sub/{gguf.name}": data, "other.gguf": b""}})) as hub:
        for number, (address, environment) in enumerate(
            [
                (f"file://{gguf}", {}),
                (f"s3://models/quants/{gguf.name}", store.environment),
                (f"hf://org/quants@main/sub/{gguf.name}", {"HF_ENDPOINT": hub.url}),
            ]
        ):
            into = tmp_path / str(number)
            fetch(tmp_path, address, into, **environment)
            marker = read_marker(into)
            assert marker is not None
            assert held(into) == {marker.path: data}
    assert marker.path == f"sub/{gguf.name}", "as an inspection reports it"


def test_what_a_connection_brought_before_it_broke_is_not_fetched_again(
    tmp_path: Path, folder_files: dict[str, bytes], store: Store
) -> None:
    name = max(folder_files, key=lambda name: len(folder_files[name]))
    half = len(folder_files[name]) // 2
    store.put("models", {f"tiny/{file}": data for file, data in folder_files.items()})
    store.cut[f"/models/tiny/{name}"] = half
    fetch(tmp_path, "s3://models/tiny", tmp_path / "s3", **store.environment)
    assert held(tmp_path / "s3") == folder_files
    end = len(folder_files[name]) - 1
    assert store.ranges(f"/models/tiny/{name}") == [f"bytes=0-{end}", f"bytes={half}-{end}"]
    with running_hub(Hub({"org/tiny": folder_files}, cut={name: half})) as hub:
        fetch(tmp_path, "hf://org/tiny", tmp_path / "hf", HF_ENDPOINT=hub.url)
        assert held(tmp_path / "hf") == folder_files
        assert hub.ranges[name] == [f"bytes=0-{end}", f"bytes={half}-{end}"]


def test_a_store_that_is_busy_for_a_while_is_waited_for(
    tmp_path: Path, folder_files: dict[str, bytes], store: Store
) -> None:
    store.put("models", {f"tiny/{file}": data for file, data in folder_files.items()})
    store.busy = 5
    fetch(tmp_path, "s3://models/tiny", tmp_path / "into", **store.environment)
    assert held(tmp_path / "into") == folder_files


def test_content_that_arrives_damaged_is_thrown_away(tmp_path: Path, folder_files: dict[str, bytes]) -> None:
    with running_hub(Hub({"org/tiny": folder_files})) as hub:
        name = max(folder_files, key=lambda name: len(folder_files[name]))
        # Half a file of the right size and name, with wrong bytes in it: a part from a disk that lost power.
        fetch(tmp_path, "hf://org/tiny", tmp_path / "into", HF_ENDPOINT=hub.url)
        [old] = [f for f in json.loads((tmp_path / "into" / HIDDEN / "plan.json").read_text())["files"] if f[0] == name]
        (tmp_path / "into" / name).unlink()
        part = tmp_path / "into" / HIDDEN / fetching.part_path(tmp_path, RemoteFile(*old)).name
        part.write_bytes(b"\0" * 1000)
        fetch(tmp_path, "hf://org/tiny", tmp_path / "into", HF_ENDPOINT=hub.url)
        assert held(tmp_path / "into") == folder_files


def test_a_source_that_is_broken_for_good_is_given_up(tmp_path: Path, folder_files: dict[str, bytes]) -> None:
    class Liar(FolderRemote):
        def __init__(self, root: Path) -> None:
            super().__init__(root)
            self.files = [RemoteFile(f.name, f.size, f.tag, "sha256:" + "0" * 64) for f in self.files]

    root = tmp_path / "source"
    root.mkdir()
    for name, data in folder_files.items():
        (root / name).write_bytes(data)
    fetcher = Fetcher(f"file://{root}", tmp_path / "into")
    (tmp_path / "into" / HIDDEN).mkdir(parents=True)
    with pytest.raises(CheckpointError, match="arrives damaged"):
        fetcher._fetch(Liar(root))
    assert read_marker(tmp_path / "into") is None


def test_a_source_that_changes_meanwhile_is_no_mixture(
    tmp_path: Path, folder_files: dict[str, bytes], store: Store
) -> None:
    name = max(folder_files, key=lambda name: len(folder_files[name]))
    store.put("models", {f"tiny/{file}": data for file, data in folder_files.items()})
    store.gate[f"/models/tiny/{name}"] = 1000
    into = tmp_path / "into"
    process = started(["fetch", "s3://models/tiny", "--into", str(into)], tmp_path, **store.environment)
    assert store.reached.wait(60)
    process.kill()
    process.communicate()
    tuned = folder_files | {name: folder_files[name][:-8] + b"finetune"}
    store.put("models", {f"tiny/{file}": data for file, data in tuned.items()})
    store.opened.set()
    fetch(tmp_path, "s3://models/tiny", into, **store.environment)
    assert held(into) == tuned
    assert store.ranges(f"/models/tiny/{name}")[-1].startswith("bytes=0-")


def test_another_revision_than_the_one_inspected_is_refused(
    tmp_path: Path, folder: Path, folder_files: dict[str, bytes], store: Store
) -> None:
    store.put("models", {f"tiny/{file}": data for file, data in folder_files.items()})
    words = fetch(tmp_path, "s3://models/tiny", tmp_path / "a", "--revision", "sha256:0", **store.environment)
    assert "has changed since it was inspected" in words
    assert held(tmp_path / "a") == {}
    shown = json.loads(finished(["inspect", "s3://models/tiny", "-o", "json"], tmp_path, **store.environment).stdout)
    options = ("--revision", shown["revision"])
    assert "whole" in fetch(tmp_path, "s3://models/tiny", tmp_path / "a", *options, **store.environment)
    assert "whole" in fetch(tmp_path, "s3://models/tiny", tmp_path / "a", *options)
    digest = inspect_source(f"file://{folder}").digest
    assert "whole" in fetch(tmp_path, f"file://{folder}", tmp_path / "b", "--revision", digest)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path, folder: Path, gguf: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    (into / "config.json").write_text("mine")
    assert "did not write" in fetch(tmp_path, f"file://{folder}", into)
    assert held(into) == {"config.json": b"mine"}
    (into / "config.json").unlink()
    fetch(tmp_path, f"file://{folder}", into)
    before = held(into)
    assert "Name a folder of its own" in fetch(tmp_path, f"file://{gguf}", into)
    assert held(into) == before


def test_a_whole_folder_that_lost_a_file_is_mended(tmp_path: Path, folder_files: dict[str, bytes]) -> None:
    with running_hub(Hub({"org/tiny": folder_files})) as hub:
        into = tmp_path / "into"
        fetch(tmp_path, "hf://org/tiny", into, HF_ENDPOINT=hub.url)
        (into / "tokenizer.json").write_bytes(b"cut")
        hub.sent.clear()
        fetch(tmp_path, "hf://org/tiny", into, HF_ENDPOINT=hub.url)
        assert held(into) == folder_files
        assert set(hub.sent) == {"tokenizer.json"}


def test_a_broken_checkpoint_gets_no_marker(tmp_path: Path, folder_files: dict[str, bytes]) -> None:
    wrong = folder_files | {"config.json": b"{}"}
    with running_hub(Hub({"org/wrong": wrong})) as hub:
        assert "error: " in fetch(tmp_path, "hf://org/wrong", tmp_path / "into", HF_ENDPOINT=hub.url)
        assert read_marker(tmp_path / "into") is None


def test_a_disk_too_small_is_told_before_anything_comes(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(tmp_path)
    small = os.statvfs_result([real[0], real[1], real[2], 3, 2, 1, *real[5:10]])
    monkeypatch.setattr(fetching.os, "statvfs", lambda path: small)
    with pytest.raises(CheckpointError, match="are still to come"):
        Fetcher(f"file://{folder}", tmp_path / "into").run()
    assert held(tmp_path / "into") == {}


def test_a_disk_that_fills_up_keeps_what_came(
    tmp_path: Path, folder: Path, folder_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace
    left = [4]

    def full(old: Path, new: Path) -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(old, new)

    monkeypatch.setattr(fetching.os, "replace", full)
    with pytest.raises(CheckpointError, match=r"is full: .* are here"):
        Fetcher(f"file://{folder}", tmp_path / "into").run()
    assert read_marker(tmp_path / "into") is None
    monkeypatch.undo()
    Fetcher(f"file://{folder}", tmp_path / "into").run()
    assert held(tmp_path / "into") == folder_files


def test_the_status_page_counts_bytes_while_they_come(
    tmp_path: Path, folder_files: dict[str, bytes], unused_port: int
) -> None:
    name = max(folder_files, key=lambda name: len(folder_files[name]))
    others = sum(len(data) for file, data in folder_files.items() if file != name)
    with running_hub(Hub({"org/tiny": folder_files}, gate={name: 70_000})) as hub:
        into = tmp_path / "into"
        options = ["--into", str(into), "--status-port", str(unused_port)]
        process = started(["fetch", "hf://org/tiny", *options], tmp_path, HF_ENDPOINT=hub.url)
        assert hub.reached.wait(60)
        page = {"startup": {"download": {"bytes": 0}}}
        while page["startup"]["download"]["bytes"] <= others:
            with urllib.request.urlopen(f"http://127.0.0.1:{unused_port}/status") as answer:
                page = json.load(answer)
        assert page["phase"] == "downloading"
        download = page["startup"]["download"]
        assert set(download) == {"bytes", "total", "seconds", "eta"}
        assert download["total"] == sum(map(len, folder_files.values()))
        assert others < download["bytes"] <= others + 70_000
        with urllib.request.urlopen(f"http://127.0.0.1:{unused_port}/live") as answer:
            assert answer.status == 200
        hub.opened.set()
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    assert held(into) == folder_files


def test_sigterm_ends_it_at_once_and_the_next_run_goes_on(tmp_path: Path, folder_files: dict[str, bytes]) -> None:
    name = max(folder_files, key=lambda name: len(folder_files[name]))
    with running_hub(Hub({"org/tiny": folder_files}, gate={name: 70_000})) as hub:
        into = tmp_path / "into"
        process = started(["fetch", "hf://org/tiny", "--into", str(into)], tmp_path, HF_ENDPOINT=hub.url)
        assert hub.reached.wait(60)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        assert process.returncode == 128 + signal.SIGTERM
        assert not (into / HIDDEN / "lock").exists()
        hub.opened.set()
        fetch(tmp_path, "hf://org/tiny", into, HF_ENDPOINT=hub.url)
    assert held(into) == folder_files


@pytest.fixture
def unused_port() -> Iterator[int]:
    import socket

    with socket.socket() as held_open:
        held_open.bind(("127.0.0.1", 0))
        number = held_open.getsockname()[1]
    return number


def test_a_pod_that_follows_fetches_nothing_that_its_leader_alone_needs(tmp_path: Path, folder: Path) -> None:
    into, source = tmp_path / "into", f"file://{folder}"
    words = fetch(tmp_path, source, into, "--leader-only", **{POD: "tiny-g0-1"})
    assert "only the leader" in words
    assert not into.exists()
    for options in ({POD: "tiny-g0-0"}, {}):
        fetch(tmp_path, source, into / str(len(options)), "--leader-only", **options)
        assert read_marker(into / str(len(options))) is not None
