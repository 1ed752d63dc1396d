"""Where checkpoints come from: paths and the hub, in a process of its own since the endpoint is read at import."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plimsoll.api.errors import CheckpointError, SpecError
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.sources import HubSource, hub_error, parse_hub, resolve
from tests.support.checkpoints import make_checkpoint
from tests.support.hub import Hub, running_hub

CLIENT = """
import json, sys
from plimsoll.api.errors import PlimsollError
from plimsoll.checkpoint.sources import resolve
source, offline = sys.argv[1], {"yes": True, "no": None}[sys.argv[2]]
seen = []
try:
    path = resolve(source, progress=lambda done, total: seen.append((done, total)), offline=offline)
    print(json.dumps({"path": str(path), "progress": seen}))
except PlimsollError as error:
    print(json.dumps({"error": str(error), "kind": type(error).__name__}))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", vocab_size=320)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fetch(hub: Hub, home: Path, source: str, *, offline: bool = False, **environment: str) -> dict[str, Any]:
    """`resolve` in a fresh process that knows only this hub and this cache."""
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()
    }
    process = subprocess.run(
        [sys.executable, "-c", CLIENT, source, "yes" if offline else "no"],
        env=clean | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    answer: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    answer["said"] = process.stdout + process.stderr
    return answer


def test_download_brings_what_serving_needs_and_nothing_else(tmp_path: Path, files: dict[str, bytes]) -> None:
    extras = {"pytorch_model.bin": b"pickle", "modeling.py": b"code", "original/params.json": b"{}"}
    with running_hub(Hub({"org/tiny": files | extras | {"consolidated.safetensors": b"twice"}})) as hub:
        answer = fetch(hub, tmp_path, "hf://org/tiny@main")
        folder = Path(answer["path"])
        assert {path.name for path in folder.iterdir()} == set(files)
        assert folder.name == hub.commit("org/tiny")
        assert open_checkpoint(folder).facts.vocab_size == 320
        total = sum(map(len, files.values()))
        assert answer["progress"][-1] == [total, total]
        assert [done for done, _ in answer["progress"]] == sorted(done for done, _ in answer["progress"])

        sent = hub.sent.total()
        assert Path(fetch(hub, tmp_path, "hf://org/tiny@main")["path"]) == folder
        assert hub.sent.total() == sent, "a second run fetches nothing"


def test_download_resumes_where_the_connection_was_cut(tmp_path: Path) -> None:
    # The client keeps what it received in pieces of 10 MiB.
    mebibyte = 1 << 20
    weights = os.urandom(24 * mebibyte)
    with running_hub(Hub({"org/big": {"model.safetensors": weights}}, cut={"model.safetensors": 15 * mebibyte})) as hub:
        answer = fetch(hub, tmp_path, "hf://org/big@main")
        assert (Path(answer["path"]) / "model.safetensors").read_bytes() == weights
        assert hub.ranges["model.safetensors"] == [f"bytes={10 * mebibyte}-"]
        assert hub.sent["model.safetensors"] == (15 + 24 - 10) * mebibyte
        assert answer["progress"][-1] == [len(weights), len(weights)]


def test_files_that_arrived_whole_are_not_fetched_after_a_failed_run(tmp_path: Path, files: dict[str, bytes]) -> None:
    without = {name: data for name, data in files.items() if name != "model.safetensors"}
    with running_hub(Hub({"org/tiny": without})) as hub:
        assert "no safetensors" in fetch(hub, tmp_path, "hf://org/tiny@main")["error"]
        hub.repos["org/tiny"] = files
        hub.sent.clear()
        assert "path" in fetch(hub, tmp_path, "hf://org/tiny@main")
        assert set(hub.sent) == {"model.safetensors"}


def test_offline_uses_the_cache_and_says_when_it_is_not_there(tmp_path: Path, files: dict[str, bytes]) -> None:
    with running_hub(Hub({"org/tiny": files})) as hub:
        cold = fetch(hub, tmp_path, "hf://org/tiny@main", offline=True)
        assert cold["kind"] == "CheckpointError"
        assert "downloads are off" in cold["error"]
        path = fetch(hub, tmp_path, "hf://org/tiny@main")["path"]
        hub.requests.clear()
        assert fetch(hub, tmp_path, "hf://org/tiny@main", offline=True)["path"] == path
        assert fetch(hub, tmp_path, "hf://org/tiny@main", HF_HUB_OFFLINE="1")["path"] == path
        assert "downloads are off" in fetch(hub, tmp_path / "other", "hf://org/tiny@main", HF_HUB_OFFLINE="1")["error"]
        assert hub.requests == []


def test_gguf_file_of_a_repository(tmp_path: Path) -> None:
    with running_hub(Hub({"org/quants": {"a-Q4.gguf": b"GGUF4", "a-[Q8].gguf": b"GGUF8", "README.md": b"x"}})) as hub:
        path = Path(fetch(hub, tmp_path, "hf://org/quants@main/a-[Q8].gguf")["path"])
        assert path.read_bytes() == b"GGUF8"
        assert set(hub.sent) == {"a-[Q8].gguf"}
        assert "name one: hf://org/quants@main/a-Q4.gguf" in fetch(hub, tmp_path, "hf://org/quants@main")["error"]
        assert "no such file" in fetch(hub, tmp_path, "hf://org/quants@main/none.gguf")["error"]


def test_all_parts_of_a_split_gguf_are_fetched(tmp_path: Path) -> None:
    parts = {f"q/a-0000{number}-of-00002.gguf": b"GGUF%d" % number for number in (1, 2)}
    with running_hub(Hub({"org/quants": {**parts, "q/b.gguf": b"GGUF"}})) as hub:
        path = Path(fetch(hub, tmp_path, "hf://org/quants@main/q/a-00001-of-00002.gguf")["path"])
        assert set(hub.sent) == set(parts)
        assert sorted(file.name for file in path.parent.iterdir()) == ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]


def test_gated_repository_opens_with_the_token_and_never_shows_it(tmp_path: Path, files: dict[str, bytes]) -> None:
    with running_hub(Hub({"org/tiny": files}, gated={"org/tiny"})) as hub:
        refused = fetch(hub, tmp_path, "hf://org/tiny@main", HF_TOKEN="hf_wrong_secret")
        assert "gated" in refused["error"]
        assert "the token that was sent is not" in refused["error"]
        assert "HF_TOKEN" in refused["error"]
        assert "no token was sent" in fetch(hub, tmp_path, "hf://org/tiny@main")["error"]
        assert "hf_wrong_secret" not in refused["said"]
        assert "path" in fetch(hub, tmp_path, "hf://org/tiny@main", HF_TOKEN=hub.token)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("hf://org/absent@main", "no such repository"),
        ("hf://org/tiny@v9", "has no revision 'v9'"),
    ],
)
def test_what_the_hub_does_not_have(tmp_path: Path, files: dict[str, bytes], source: str, words: str) -> None:
    with running_hub(Hub({"org/tiny": files})) as hub:
        assert words in fetch(hub, tmp_path, source)["error"]


def test_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    with running_hub(Hub()) as hub:
        pass
    answer = fetch(hub, tmp_path, "hf://org/tiny@main")
    assert "cannot be reached" in answer["error"]
    assert "HF_ENDPOINT" in answer["error"]


def test_hub_that_is_broken(tmp_path: Path) -> None:
    with running_hub(Hub(status=403)) as hub:
        assert "403" in fetch(hub, tmp_path, "hf://org/tiny@main")["error"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "does not fit on the disk"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot be written"),
        (RuntimeError("peer closed connection"), "broke off (RuntimeError: peer closed connection)"),
    ],
)
def test_failures_of_this_machine(error: Exception, words: str) -> None:
    assert words in str(hub_error(error, HubSource("org/tiny", "main", None)))


def test_addresses() -> None:
    assert parse_hub("hf://org/name@v1.0") == HubSource("org/name", "v1.0", None)
    assert parse_hub("hf://org/name@refs%2Fpr%2F1/sub/x.gguf") == HubSource("org/name", "refs/pr/1", "sub/x.gguf")
    assert parse_hub("hf://org/name").revision == "main"
    for wrong in (
        "hf://",
        "hf://name",
        "hf://org/name@",
        "hf://org/name@a@b",
        "hf://org/../x@y",
        "hf://org/name/x.bin",
    ):
        with pytest.raises(SpecError, match="hub address"):
            parse_hub(wrong)


def test_paths_absolute_relative_and_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a b.gguf").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    there = tmp_path / "a b.gguf"
    for source in (
        f"file://{there}",
        "file://a b.gguf",
        "file://a%20b.gguf",
        "file://./a b.gguf",
        str(there),
        "a b.gguf",
    ):
        assert resolve(source).samefile(there)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        resolve("file://nowhere")
    for source in ("s3://bucket/x", "pvc://claim/x", "oci://image@sha256:0"):
        with pytest.raises(SpecError, match="on this machine"):
            resolve(source)
    with pytest.raises(SpecError, match="empty"):
        resolve("file://")
    with pytest.raises(CheckpointError):
        resolve("file://nul\0byte")
