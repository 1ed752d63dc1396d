"""Checkpoint folders that point elsewhere: each file that is read is a plain one inside the folder."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.inspecting import open_remote
from plimsoll.checkpoint.open import open_checkpoint
from plimsoll.checkpoint.plain_files import READ, TEMPLATES, check_plain_files
from plimsoll.checkpoint.tokenizer import load_tokenizer
from tests.support.bounded import refusal
from tests.support.checkpoints import make_checkpoint

SECRET = "sk-secret-of-the-pod"
#: Every name that is read of a folder, by us or by transformers.
NAMES = (
    "config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "tokenizer.model",
    "chat_template.json", "vocab.json", "merges.txt", "plimsoll.json", "model.gguf", f"{TEMPLATES}/tool_use.jinja",
)  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("original") / "model")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    (tmp_path / "keys").write_text(SECRET)
    return Path(shutil.copytree(original, tmp_path / "model"))


def absolute(link: Path, target: Path) -> None:
    link.symlink_to(target)


def relative(link: Path, target: Path) -> None:
    link.symlink_to(os.path.relpath(target, link.parent))


def by_way_of_another(link: Path, target: Path) -> None:
    (link.parent / "hop").symlink_to(target)
    link.symlink_to("hop")


def by_way_of_a_folder(link: Path, target: Path) -> None:
    (link.parent / "up").symlink_to(target.parent, target_is_directory=True)
    link.symlink_to(f"up/{target.name}")


@pytest.mark.parametrize("make", [absolute, relative, by_way_of_another, by_way_of_a_folder])
@pytest.mark.parametrize("name", NAMES)
def test_a_link_out_of_the_folder_is_refused(folder: Path, name: str, make: Callable[[Path, Path], None]) -> None:
    link = folder / name
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    make(link, folder.parent / "keys")
    error = refusal(open_checkpoint, folder)
    assert error is not None
    assert error.field == str(link)
    assert "leads out of" in str(error)
    assert SECRET not in str(error)


def test_a_link_out_of_the_folder_is_not_copied_either(folder: Path) -> None:
    """A copy in a claim would be a plain file."""
    (folder / "chat_template.jinja").symlink_to(folder.parent / "keys")
    with pytest.raises(CheckpointError, match="leads out of"):
        open_remote(str(folder))


@pytest.mark.parametrize("name", NAMES)
def test_a_pipe_is_refused_and_not_waited_for(folder: Path, name: str) -> None:
    place = folder / name
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    os.mkfifo(place)
    error = refusal(open_checkpoint, folder)
    assert error is not None
    assert (error.field, "no plain file" in str(error)) == (str(place), True)


def test_a_folder_of_templates_that_lies_elsewhere_is_refused(folder: Path) -> None:
    (folder / TEMPLATES).symlink_to(folder.parent, target_is_directory=True)
    with pytest.raises(CheckpointError, match="leads out of"):
        check_plain_files(folder)


@pytest.mark.parametrize("suffix", [suffix for suffix, most in READ.items() if most is not None])
def test_a_text_that_is_too_large_is_refused_before_it_is_read(folder: Path, suffix: str) -> None:
    with open(folder / f"large{suffix}", "wb") as file:
        file.truncate((READ[suffix] or 0) + 1)
    error = refusal(open_checkpoint, folder)
    assert error is not None
    assert "is larger than" in str(error)


@pytest.mark.parametrize("below", ["", "text/4-bits"])
def test_a_cache_of_a_hub_is_opened(original: Path, tmp_path: Path, below: str) -> None:
    """Files of a commit, and of folders in it, are links to blobs, which have no names."""
    repository = tmp_path / "models--org--name"
    (repository / "blobs").mkdir(parents=True)
    commit = repository / "snapshots" / "0123abcd" / below
    commit.mkdir(parents=True)
    for number, file in enumerate(original.iterdir()):
        blob = repository / "blobs" / f"{number:040x}"
        shutil.copy(file, blob)
        (commit / file.name).symlink_to(os.path.relpath(blob, commit))
    assert load_tokenizer(open_checkpoint(commit)).encode("hello")
    # The folder itself may be a link: it is what the user names.
    (tmp_path / "mine").symlink_to(commit, target_is_directory=True)
    open_checkpoint(tmp_path / "mine")


def test_a_volume_of_kubernetes_is_opened(original: Path, tmp_path: Path) -> None:
    """A ConfigMap's files are links to `..data`, which is a link to the folder of this version."""
    (tmp_path / "..2026_01_01").mkdir()
    (tmp_path / "..data").symlink_to("..2026_01_01", target_is_directory=True)
    for file in original.iterdir():
        shutil.copy(file, tmp_path / "..2026_01_01" / file.name)
        (tmp_path / file.name).symlink_to(f"..data/{file.name}")
    open_checkpoint(tmp_path)


def test_a_link_that_is_never_read_does_no_harm(folder: Path) -> None:
    (folder / "README.md").symlink_to("/etc/hostname")
    open_checkpoint(folder)
