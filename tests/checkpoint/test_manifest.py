"""The manifest beside a quantized checkpoint: its digest tells outputs apart, and a changed file is found."""

import json
from pathlib import Path
from typing import Any

import pytest

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.quantized.manifest import (
    MANIFEST_NAME,
    Manifest,
    hash_files,
    read_manifest,
    refuse_failed_gate,
    verify,
    write_manifest,
)


def written(folder: Path, **parts: Any) -> Manifest:
    folder.mkdir(exist_ok=True)
    for name, text in (("b.safetensors", "weights"), ("config.json", "{}")):
        (folder / name).write_text(text)
    manifest = Manifest(
        files=hash_files(folder, ["config.json", "b.safetensors"]),
        **({"gate": "passed", "recipe": {"method": "awq", "bits": 4}, "tokens": "sha256:" + "a" * 64} | parts),
    )
    write_manifest(folder, manifest)
    return manifest


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    manifest = written(tmp_path, evaluation={"before": 11.0, "after": 13.4}, source={"model": "x"})
    assert read_manifest(tmp_path) == manifest
    assert verify(tmp_path) == manifest
    assert [file.name for file in manifest.files] == ["b.safetensors", "config.json"]
    assert manifest.bytes == 9
    assert json.loads((tmp_path / MANIFEST_NAME).read_text())["digest"] == manifest.digest
    refuse_failed_gate(tmp_path)


def test_the_digest_is_of_names_and_contents_alone(tmp_path: Path) -> None:
    first, second = written(tmp_path / "a"), written(tmp_path / "b", gate="none", recipe={})
    assert first.digest == second.digest
    (tmp_path / "b" / "config.json").write_text("{} ")
    assert Manifest(hash_files(tmp_path / "b", ["config.json", "b.safetensors"]), "none").digest != first.digest


def test_a_folder_without_one_is_none_of_ours(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    refuse_failed_gate(tmp_path)
    with pytest.raises(CheckpointError, match="holds no plimsoll-manifest"):
        verify(tmp_path)


def test_a_failed_gate_is_refused_with_its_figures(tmp_path: Path) -> None:
    written(tmp_path, gate="failed", gate_message="perplexity rose by 12.3 %, 2 % are allowed")
    with pytest.raises(CheckpointError, match=r"rose by 12\.3 %, 2 % are allowed") as caught:
        refuse_failed_gate(tmp_path)
    assert caught.value.fix


@pytest.mark.parametrize("change", ["other", "weight", None])
def test_a_file_that_is_not_what_was_written_is_named(tmp_path: Path, change: str | None) -> None:
    written(tmp_path)
    file = tmp_path / "b.safetensors"
    if change is None:
        file.unlink()
    else:
        file.write_text(change)
    with pytest.raises(CheckpointError) as caught:
        verify(tmp_path)
    assert caught.value.field == str(file)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"version": 2}, "version"),
        ({"gate": "maybe"}, "gate"),
        ({"digest": "sha256:0"}, "digest"),
        ({"files": [{"name": "../secret", "bytes": 1, "sha256": "0"}]}, "files"),
        ({"files": [{"name": "a", "bytes": "1", "sha256": "0"}]}, "files"),
        ({"files": ["a"]}, "files"),
        ({"files": None}, "files"),
        ({"recipe": []}, "recipe"),
        ({"tokens": 5}, "tokens"),
        ({"gateMessage": {}}, "gateMessage"),
    ],
)
def test_a_forged_one_is_refused_by_field(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    written(tmp_path)
    path = tmp_path / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError) as caught:
        read_manifest(tmp_path)
    assert str(caught.value.field).endswith(f": {field}")
