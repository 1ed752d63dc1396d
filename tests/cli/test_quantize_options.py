"""Options of `plimsoll quantize` as a shell sees them: files of the wanted size, and windows that say little."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from plimsoll.checkpoint.quantized.manifest import verify
from tests.support.checkpoints import make_checkpoint
from tests.support.forked import Forked


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forked]:
    with Forked(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("options") / "model", num_hidden_layers=3)


def test_files_of_weights_have_the_wanted_size(commands: Forked, source: Path, tmp_path: Path) -> None:
    found = {}
    for size in (None, "48Ki"):
        out = tmp_path / f"out-{size}"
        given = () if size is None else ("--shard-size", size)
        done = commands.run("quantize", source, "--work-dir", out, "--method", "rtn", "--eval-samples", "0", *given)
        assert done.returncode == 0, done.stderr
        verify(out)
        found[size] = sorted(path for path in out.glob("*.safetensors"))
    assert [path.name for path in found[None]] == ["model.safetensors"]
    several = found["48Ki"]
    assert len(several) > 2
    index = json.loads((several[0].parent / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in several}
    # What lies outside the layers is one piece, and it may be larger.
    assert all(path.stat().st_size < 56 << 10 for path in several[1:])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--calib-samples", "1", "--calib-seqlen", "2"), "--calib-seqlen: must be 16 or more (found 2). Use 512"),
        (("--shard-size", "big"), "--shard-size"),
        (("--method", "rtn", "--no-clip"), "--no-clip: goes with method awq, the only one that searches (found 'rtn')"),
        (("--method", "rtn", "--calib-samples", "8"), "--calib-samples: goes with method awq"),
        (("--method", "int8", "--search-scale"), "--search-scale: goes with method awq"),
        (("--device-memory", "4Gi"), "--device-memory: goes with --device cuda (found '4.0 GiB')"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_written(
    options: tuple[str, ...], words: str, commands: Forked, source: Path, tmp_path: Path
) -> None:
    done = commands.run("quantize", source, "--work-dir", tmp_path / "out", *options)
    assert done.returncode == 1
    assert words in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_not_there_is_named_as_the_argument_is(commands: Forked, tmp_path: Path) -> None:
    done = commands.run("quantize", tmp_path / "none", "--work-dir", tmp_path / "out")
    assert done.returncode == 1
    assert "SOURCE: there is no such file or folder" in done.stderr
