"""`plimsoll quantize` where something is broken: one line that says what to do, nothing that looks finished, and the
same bytes once it is mended."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.checkpoints import make_checkpoint
from tests.support.forked import Forked
from tests.support.quantizing import contents, write_text

SECOND = "model-00002-of-00003.safetensors"
#: So that hidden states have 74 kB, the first shard 82 kB, the hidden states of the evaluation 98 kB.
HELD_OUT = "8"


def in_shards(folder: Path) -> Path:
    """The same checkpoint in three files and an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {name: f"model-{index % 3 + 1:05}-of-00003.safetensors" for index, name in enumerate(sorted(weights))}
    for file in sorted(set(where.values())):
        held = {name: weights[name] for name in where if where[name] == file}
        save_file(held, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def with_value(folder: Path, name: str, value: float) -> None:
    """The last element of a tensor becomes `value`."""
    where = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]
    weights = load_file(folder / where)
    weights[name].view(-1)[-1] = value
    save_file(weights, folder / where, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forked]:
    with Forked(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    write_text(folder / "ships.txt")
    return in_shards(make_checkpoint(folder / "model", dtype="bfloat16", num_hidden_layers=3))


@pytest.fixture
def source(whole: Path, tmp_path: Path) -> Path:
    """A copy to be broken."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture(scope="module")
def quantize(commands: Forked, whole: Path) -> Callable[..., CompletedProcess[str]]:
    def run(source: Path, out: Path, text: Path | None = None, **limits: Any) -> CompletedProcess[str]:
        return commands.run(
            "quantize", source, "--work-dir", out, "--w-group-size", "32", "--calib-dataset",
            text or whole.with_name("ships.txt"), "--calib-samples", "6", "--calib-seqlen", "48", "--eval-samples",
            HELD_OUT, "--threads", "2", **limits,
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def undisturbed(
    quantize: Callable[..., CompletedProcess[str]], whole: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    done = quantize(whole, out)
    assert done.returncode == 0, done.stderr
    return dict(contents(out))


def error_of(done: CompletedProcess[str], out: Path) -> str:
    """The one line of a run that failed as it should."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists() or set(os.listdir(out)) <= {".partial"}
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, f"1 of 3 shards are not in the folder: {SECOND}. Complete the download"),
    "cut": (lambda path: os.truncate(path, path.stat().st_size - 500), "is truncated or has grown; download it again"),
    "cut in its header": (lambda path: os.truncate(path, 100), "is truncated or not safetensors; download it again"),
    "of garbage": (lambda path: path.write_bytes((64).to_bytes(8, "little") + b"\x80 garb" * 60), "Download the file"),
    "an error page": (lambda path: path.write_bytes(b"<!doctype html>" * 60), "or not safetensors; download it again"),
    "of another model": (lambda path: save_file({"x": torch.ones(2)}, path), "download both again"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_shard_that_is_not_what_it_should_be(
    name: str, source: Path, tmp_path: Path, quantize: Callable[..., CompletedProcess[str]]
) -> None:
    break_it, words = DAMAGE[name]
    break_it(source / SECOND)
    out = tmp_path / "out"
    line = error_of(quantize(source, out), out)
    assert words in line
    assert str(source) in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("tensor", "value"),
    [
        # The last row of the vocabulary, which no text has a token of.
        ("model.embed_tokens.weight", float("nan")),
        ("lm_head.weight", float("-inf")),
        ("model.layers.2.post_attention_layernorm.weight", float("nan")),
    ],
)
def test_a_weight_that_is_no_number_is_named_before_anything_is_made_of_it(
    tensor: str, value: float, source: Path, tmp_path: Path, quantize: Callable[..., CompletedProcess[str]]
) -> None:
    with_value(source, tensor, value)
    out = tmp_path / "out"
    line = error_of(quantize(source, out), out)
    assert f"{source}: {tensor}: holds values that are not finite. Download the checkpoint again" in line
    assert not (out / ".partial" / "state.json").exists(), "also where it is in the last layer"


def test_a_source_that_changed_since_is_not_gone_on_with(
    source: Path, tmp_path: Path, quantize: Callable[..., CompletedProcess[str]]
) -> None:
    out = tmp_path / "out"
    # The hidden states of the evaluation do not fit.
    error_of(quantize(source, out, file_size=90_000), out)
    done = {path: path.read_bytes() for path in (out / ".partial" / "output").iterdir()}
    # The same configuration, the same sizes, other weights.
    with_value(source, "model.layers.2.self_attn.o_proj.weight", 0.5)
    line = error_of(quantize(source, out), out)
    partial = out / ".partial"
    assert f"{partial}: holds unfinished work with other weights (found 'sha256:" in line
    assert line.endswith(f"Remove {partial} to start again, or name another folder")
    assert {path: path.read_bytes() for path in (partial / "output").iterdir()} == done


def test_a_place_that_cannot_be_written(
    whole: Path, tmp_path: Path, quantize: Callable[..., CompletedProcess[str]]
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    out, fix = place / "out", "Give it a folder that can be written"
    place.chmod(0o555)
    line = error_of(quantize(whole, out, plain_user=True), out)
    assert line == f"error: {out}: cannot be written: Permission denied. {fix}"
    place.chmod(0o755)
    out.write_text("")
    done = quantize(whole, out)
    assert (done.returncode, out.read_text()) == (1, "")
    assert f"error: --work-dir: is a file (found '{out}'). Name a folder" in done.stderr


def test_room_or_permission_that_ends_in_the_middle_loses_nothing(
    whole: Path, tmp_path: Path, quantize: Callable[..., CompletedProcess[str]], undisturbed: dict[str, bytes]
) -> None:
    out, reached = tmp_path / "out", []
    for room in (78_000, 90_000):
        line = error_of(quantize(whole, out, file_size=room), out)
        assert "cannot be written: a file there may not be that large. Raise that limit (ulimit -f)" in line
        assert line.endswith("goes on from the layer it had reached")
        state = out / ".partial" / "state.json"
        reached.append(json.loads(state.read_bytes())["layers"] if state.exists() else None)
    assert reached == [None, 3]
    partial = out / ".partial"
    partial.chmod(0o555)
    line = error_of(quantize(whole, out, plain_user=True), out)
    assert (
        line == f"error: {partial / 'lock'}: cannot be written: Permission denied. Give it a folder that can be written"
    )
    partial.chmod(0o755)
    done = quantize(whole, out)
    assert "quantizing: layer 3 of 3" in done.stderr
    assert "quantizing: layer 1 of 3" not in done.stderr
    assert dict(contents(out)) == undisturbed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no such file or folder (found 'TEXT'). Check the path"),
        (b"\x80" * 99, "is not UTF-8 text (at byte 0) (found 'TEXT'). Convert it to UTF-8"),
        (
            b"too few words",
            "tokens, and 288 are needed: 6 windows of 48 tokens (found 'TEXT'). Give more text, or use fewer",
        ),
    ],
    ids=["missing", "not text", "too little"],
)
def test_text_that_is_none(
    text: bytes | None, words: str, whole: Path, tmp_path: Path, quantize: Callable[..., CompletedProcess[str]]
) -> None:
    file, out = tmp_path / "text.txt", tmp_path / "out"
    if text is not None:
        file.write_bytes(text)
    line = error_of(quantize(whole, out, file), out)
    assert line.startswith("error: --calib-dataset: ")
    assert words.replace("TEXT", str(file)) in line
