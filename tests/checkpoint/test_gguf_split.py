"""A GGUF in parts is the same checkpoint as the whole file, from wherever it comes."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.folder import FolderRemote
from plimsoll.checkpoint.gguf_split import part_names, whole_files
from plimsoll.checkpoint.inspecting import inspect_source
from plimsoll.checkpoint.remote import RemoteFile, choose
from plimsoll.checkpoint.tokenizer import load_tokenizer
from tests.support.checkpoints import make_gguf, make_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("whole") / "tiny.gguf", make_model("LlamaForCausalLM"), block_type="Q8_0")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("split")
    make_gguf(folder / "tiny.gguf", make_model("LlamaForCausalLM"), block_type="Q8_0", tensors_a_part=6)
    assert sorted(file.name for file in folder.iterdir()) == part_names("tiny-00001-of-00004.gguf")
    return folder


def copied(split: Path, folder: Path) -> Path:
    return Path(shutil.copytree(split, folder / "copy"))


def test_parts_are_the_whole_file(whole: Path, split: Path) -> None:
    one = open_checkpoint(whole)
    for path in (split, split / "tiny-00001-of-00004.gguf", split / "tiny-00003-of-00004.gguf"):
        parts = open_checkpoint(path)
        assert [file.name for file in parts.files()] == part_names("tiny-00001-of-00004.gguf")
        assert parts.facts.tensors.keys() == one.facts.tensors.keys()
        for name in one.tensors:
            assert np.array_equal(parts.read(name).data, one.read(name).data)
        assert parts.read("lm_head.weight", (3, 9)).data.tobytes() == one.read("lm_head.weight", (3, 9)).data.tobytes()
        assert load_tokenizer(parts).encode("hello 日本") == load_tokenizer(one).encode("hello 日本")


def test_a_split_model_is_inspected_as_a_folder_and_as_a_file(split: Path) -> None:
    folder = inspect_source(f"file://{split}")
    assert folder.path == "tiny-00001-of-00004.gguf"
    assert folder.bytes == sum(file.stat().st_size for file in split.iterdir())
    assert inspect_source(f"file://{split}/tiny-00001-of-00004.gguf").digest == folder.digest
    names = [file.name for file in FolderRemote(split.parent / split.name).files]
    assert names == part_names("tiny-00001-of-00004.gguf")


def test_a_missing_part_is_named(split: Path, tmp_path: Path) -> None:
    folder = copied(split, tmp_path)
    (folder / "tiny-00003-of-00004.gguf").unlink()
    for path in (folder, folder / "tiny-00001-of-00004.gguf", folder / "tiny-00002-of-00004.gguf"):
        with pytest.raises(CheckpointError, match=r"1 of the 4 parts .* are not there: tiny-00003-of-00004\.gguf"):
            open_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"tiny-00003-of-00004\.gguf"):
        inspect_source(f"file://{folder}")


def test_parts_that_do_not_belong_together_are_refused(split: Path, tmp_path: Path) -> None:
    folder = copied(split, tmp_path)
    first, second = folder / "tiny-00002-of-00004.gguf", folder / "tiny-00003-of-00004.gguf"
    shutil.copy(first, second)
    with pytest.raises(CheckpointError, match="is not part 3 of 4"):
        open_checkpoint(folder)
    lonely = tmp_path / "renamed.gguf"
    shutil.copy(split / "tiny-00001-of-00004.gguf", lonely)
    with pytest.raises(CheckpointError, match="its name does not say which"):
        open_checkpoint(lonely)


def test_two_models_in_one_folder_are_two(split: Path, whole: Path, tmp_path: Path) -> None:
    folder = copied(split, tmp_path)
    shutil.copy(whole, folder / "other.gguf")
    with pytest.raises(CheckpointError, match="holds 2 GGUF files"):
        open_checkpoint(folder)
    listed = [RemoteFile(file.name, file.stat().st_size, "") for file in folder.iterdir()]
    with pytest.raises(CheckpointError, match="2 GGUF files"):
        choose(listed, "hf://x/y")
    needed, path = choose([file for file in listed if file.name != "other.gguf"], "hf://x/y")
    assert (sorted(file.name for file in needed), path) == (part_names(path), "tiny-00001-of-00004.gguf")


def test_names_that_are_no_parts_are_files_of_their_own() -> None:
    for name in ("a.gguf", "a-00001-of-00001.gguf", "a-00000-of-00002.gguf", "a-00003-of-00002.gguf", "a-1-of-2.gguf",
                 "a-00001-of-99999.gguf"):  # fmt: skip
        assert part_names(name) == [name]
    assert part_names("q4/a-00002-of-00002.gguf") == ["q4/a-00001-of-00002.gguf", "q4/a-00002-of-00002.gguf"]
    assert list(whole_files(["b-00002-of-00002.gguf", "a.gguf", "b-00001-of-00002.gguf", "x.txt"])) == [
        "a.gguf", "b-00001-of-00002.gguf",
    ]  # fmt: skip
