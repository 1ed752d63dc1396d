"""A folder that appears whole or not at all."""

import errno
from pathlib import Path

import pytest

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.new_folder import new_folder, refuse_existing


def test_a_folder_appears_with_all_that_was_written(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "model"
    with new_folder(out, 10) as folder:
        (folder / "file").write_text("words")
        assert not out.exists()
    assert (out / "file").read_text() == "words"
    assert [one.name for one in out.parent.iterdir()] == ["model"]
    with pytest.raises(CheckpointError, match="exists already"):
        refuse_existing(out)


@pytest.mark.parametrize(
    ("error", "said"),
    [(OSError(errno.ENOSPC, "full"), "the disk is full"), (PermissionError(errno.EACCES, "not yours"), "not yours"),
     (CheckpointError("a tensor is missing", field="x"), "a tensor is missing")],
)  # fmt: skip
def test_a_block_that_fails_leaves_nothing(tmp_path: Path, error: Exception, said: str) -> None:
    def write() -> None:
        with new_folder(tmp_path / "model", 10) as folder:
            (folder / "file").write_text("words")
            raise error

    with pytest.raises(CheckpointError, match=said):
        write()
    assert not list(tmp_path.iterdir())


def test_what_the_disk_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    refused = pytest.raises(CheckpointError, match=r"takes \d+ bytes in float32, the disk has \d+ free")
    with refused, new_folder(tmp_path / "model", 1 << 60, " in float32"):
        raise AssertionError("the block runs")
    assert not list(tmp_path.iterdir())
