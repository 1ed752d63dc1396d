"""Files of a checkpoint that were replaced after they were inspected are told apart, and refused."""

import json
import os
import shutil
from pathlib import Path

import pytest

from plimsoll.api.errors import SourceChangedError
from plimsoll.checkpoint.contents import ENVIRONMENT, contents_of, refuse_changed
from plimsoll.checkpoint.inspecting import inspect_source
from plimsoll.operator.build.pod import CHECKPOINT_CONTENTS
from plimsoll.runtime.server.pod import MANIFEST, make_work
from tests.support.checkpoints import make_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model", shard_bytes=200_000)


def weights(folder: Path) -> Path:
    return next(iter(folder.glob("*.safetensors")))


def rewritten(file: Path, at: int, keep_time: bool = True) -> None:
    """Another byte at an offset (from the end where it is negative), and nothing else that a listing shows."""
    status, content = file.stat(), bytearray(file.read_bytes())
    content[at] ^= 0xFF
    file.write_bytes(content)
    if keep_time:
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_the_same_files_are_taken_wherever_they_are_mounted(folder: Path, tmp_path: Path) -> None:
    known = contents_of(folder)
    assert known.startswith("1:")
    assert shutil.copytree(folder, tmp_path / "elsewhere")
    assert contents_of(tmp_path / "elsewhere") == known
    (folder / "README.md").write_text("This is no part of the checkpoint.")
    (folder / ".cache.json").write_text("{}")
    refuse_changed(folder, known)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: rewritten(weights(folder), -1),
        lambda folder: rewritten(weights(folder), 9),
        lambda folder: os.utime(weights(folder), (1, 1)),
        lambda folder: (folder / "tokenizer_config.json").write_text("{}"),
        lambda folder: (folder / "generation_config.json").write_text('{"eos_token_id": 7}'),
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: shutil.copy(weights(folder), folder / "model-2.safetensors"),
    ],
    ids=["a weight", "a header", "a time", "a tokenizer", "an end of turn", "a file less", "a file more"],
)
def test_each_change_of_a_folder_is_seen(folder: Path, change: object) -> None:
    known = contents_of(folder)
    change(folder)  # type: ignore[operator]
    with pytest.raises(SourceChangedError, match=r"^SourceChanged: .*contentVersion"):
        refuse_changed(folder, known)


def test_a_large_file_is_sampled_all_over(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(bytes(24 << 20))
    known = contents_of(file)
    for at in (0, 5 << 19, -1, -(16 << 10)):
        rewritten(file, at)
        assert contents_of(file) != known
        rewritten(file, at)
    assert contents_of(file) == known


def test_a_split_file_is_all_of_its_parts(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"m[1]-0000{number}-of-00002.gguf").write_bytes(b"GGUF")
    known = contents_of(tmp_path / "m[1]-00001-of-00002.gguf")
    rewritten(tmp_path / "m[1]-00002-of-00002.gguf", 0)
    assert contents_of(tmp_path / "m[1]-00001-of-00002.gguf") != known


def test_an_inspection_of_a_mount_says_what_was_there(folder: Path, gguf: Path) -> None:
    for path in (folder, gguf):
        assert inspect_source(f"file://{path}").contents == contents_of(path)
    assert inspect_source(f"file://{gguf.parent}").contents == contents_of(gguf)


def test_what_an_unknown_layout_says_is_not_compared(folder: Path) -> None:
    for expected in (None, "", "2:00"):
        refuse_changed(folder, expected)


def test_both_sides_name_the_variable_alike() -> None:
    assert ENVIRONMENT == CHECKPOINT_CONTENTS


def test_a_pod_refuses_what_was_not_inspected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"model": {"source": f"file://{folder}"}, "accelerator": {"resource": "cpu", "memory": "1Gi"}}
    manifest = {
        "apiVersion": "plimsoll.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "a"}, "spec": spec,
    }  # fmt: skip
    monkeypatch.setenv(MANIFEST, json.dumps(manifest))
    monkeypatch.setenv(ENVIRONMENT, contents_of(folder))
    rewritten(weights(folder), -1)
    with pytest.raises(SourceChangedError, match=r"^SourceChanged: "):
        make_work("127.0.0.1", 0)
