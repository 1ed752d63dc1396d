"""Hugging Face folders: what opens, what is read, and what is refused before any memory is taken."""

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from plimsoll.api.errors import CheckpointError, PlimsollError
from plimsoll.checkpoint import open_checkpoint
from tests.support.checkpoints import ARCHITECTURES, make_checkpoint


def as_torch(raw: Any) -> torch.Tensor:
    """What a loader makes of a RawTensor."""
    tensor = torch.from_numpy(raw.data)
    return tensor.view(torch.bfloat16) if raw.dtype == "BF16" else tensor


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def sharded_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("base") / "sharded", shard_bytes=100_000)


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "copy"))


@pytest.fixture
def sharded(sharded_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded_base, tmp_path / "sharded"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_reads_as_safetensors_does(tmp_path: Path, architecture: str, dtype: str) -> None:
    folder = make_checkpoint(tmp_path / "model", architecture, dtype=dtype)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.format == "huggingface"
    assert checkpoint.facts.architecture == architecture
    expected = stored(folder)
    assert set(checkpoint.tensors) == set(expected)
    for name, tensor in expected.items():
        raw = checkpoint.read(name)
        assert raw.shape == tuple(tensor.shape) == raw.data.shape
        assert torch.equal(as_torch(raw), tensor)
        assert raw.data.flags.writeable
    assert checkpoint.total_bytes == sum(tensor.nbytes for tensor in expected.values())


def test_shards_and_tied_embeddings(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", shard_bytes=60_000, dtype="bfloat16", tie_word_embeddings=True)
    checkpoint = open_checkpoint(folder)
    assert len(checkpoint.files()) > 1
    assert checkpoint.facts.tie_embeddings
    assert "lm_head.weight" not in checkpoint.tensors
    for name, tensor in stored(folder).items():
        assert torch.equal(as_torch(checkpoint.read(name)), tensor)


def test_rows_of_a_tensor(base: Path) -> None:
    checkpoint = open_checkpoint(base)
    whole = checkpoint.read("model.embed_tokens.weight").data
    for rows in ((0, 0), (0, 1), (7, 93), (0, len(whole)), (len(whole) - 1, len(whole))):
        part = checkpoint.read("model.embed_tokens.weight", rows)
        assert part.shape == (rows[1] - rows[0], whole.shape[1])
        np.testing.assert_array_equal(part.data, whole[rows[0] : rows[1]])
    with pytest.raises(ValueError, match="leave"):
        checkpoint.read("model.embed_tokens.weight", (0, len(whole) + 1))
    with pytest.raises(KeyError):
        checkpoint.read("no.such.tensor")


def test_opening_takes_no_memory_for_weights(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "wide", vocab_size=60_000, hidden_size=128, tokenizer=False)
    tracemalloc.start()
    checkpoint = open_checkpoint(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert checkpoint.total_bytes > 60_000_000
    assert peak < 1_000_000


def test_hub_cache_of_symbolic_links(base: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "commit"
    snapshot.mkdir(parents=True)
    shutil.copytree(base, blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert open_checkpoint(snapshot).digest() == open_checkpoint(base).digest()


def test_digest_tells_changes_but_not_places(base: Path, folder: Path, sharded: Path) -> None:
    digest = open_checkpoint(base).digest()
    assert digest.startswith("sha256:")
    assert open_checkpoint(folder).digest() == digest
    assert open_checkpoint(sharded).digest() != digest
    edit(folder / "config.json", lambda config: config.update(rms_norm_eps=1e-6))
    assert open_checkpoint(folder).digest() != digest


def test_file_cut_after_opening_is_an_error_and_not_a_crash(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    with open(folder / "model.safetensors", "r+b") as file:
        file.truncate(10_000)
    last = max(checkpoint.tensors, key=lambda name: checkpoint.tensors[name].nbytes)
    with pytest.raises(CheckpointError, match="promised"):
        checkpoint.read(last)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def refusal(path: Path) -> str:
    with pytest.raises(PlimsollError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert str(path) in message or caught.value.field
    return message


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: h[NORM].update(dtype="F33"), "unknown dtype"),
        (lambda h: h[NORM].update(shape=[65]), "takes 260 bytes"),
        (lambda h: h[NORM].update(shape=[-64]), "non-negative"),
        (lambda h: h[NORM].update(shape=[2**62, 2**62]), "takes"),
        (lambda h: h[NORM].update(shape="64"), "non-negative"),
        (lambda h: h[NORM].update(data_offsets=[0, 256]), "begins at byte"),
        (lambda h: h[NORM].update(data_offsets=[2**60, 2**60 + 256]), "begins at byte"),
        (lambda h: h[NORM].update(data_offsets=[256, 0]), "offsets hold -256"),
        (lambda h: h[NORM].update(extra=1), "exactly dtype, shape and data_offsets"),
        (lambda h: h.update({NORM: None}), "exactly dtype, shape and data_offsets"),
        (lambda h: h.pop(NORM), "the header describes"),
    ],
)
def test_damaged_header(folder: Path, change: Callable[[dict[str, Any]], Any], words: str) -> None:
    edit_header(folder / "model.safetensors", change)
    message = refusal(folder)
    assert words in message
    assert "model.safetensors" in message


@pytest.mark.parametrize("size", [0, 7, 8, 100, 5_000, -1])
def test_truncated_file(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:size])
    assert "model.safetensors" in refusal(folder)
    path.write_bytes(data + b"\0")
    assert "has grown" in refusal(folder)


def test_header_length_beyond_the_file_or_beyond_reason(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes((2**63).to_bytes(8, "little") + data[8:])
    assert "says its header takes" in refusal(folder)
    with open(path, "wb") as file:  # Sparse: takes no disk.
        file.write((2**31).to_bytes(8, "little"))
        file.truncate(2**32)
    assert "header above" in refusal(folder)


def test_json_that_is_not_a_model(folder: Path) -> None:
    for text, words in (
        ("{", "not valid JSON"),
        ("[]", "must be a JSON object"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": 1, "a": 2}', "'a' appears twice"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a": ' + "[" * 200_000, "nested too deeply"),
        ("\xff", "not valid JSON"),
    ):
        (folder / "config.json").write_text(text, encoding="latin-1")
        message = refusal(folder)
        assert words in message
        assert "config.json" in message


def test_missing_wrong_and_unplaced_tensors(folder: Path) -> None:
    config = folder / "config.json"
    original = config.read_text()
    edit(config, lambda c: c.update(num_hidden_layers=3))
    assert "model.layers.2" in refusal(folder)
    edit(config, lambda c: c.update(num_hidden_layers=10**9))
    assert "counts 1000000000 layers" in refusal(folder)
    config.write_text(original)
    edit(config, lambda c: c.update(intermediate_size=128))
    assert "[96, 64]" in refusal(folder)
    config.write_text(original)
    edit(config, lambda c: c.update(num_hidden_layers=1))
    assert "no place for: model.layers.1" in refusal(folder)


def test_shards_missing_or_misplaced(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    original = index.read_text()
    first = sorted(sharded.glob("*.safetensors"))[0]
    edit(index, lambda i: i["weight_map"].update({NORM: first.name}))
    assert f"says tensor '{NORM}' is in {first.name}" in refusal(sharded)
    for name in ("../model.safetensors", "/etc/passwd", "x.bin", "a\0.safetensors"):
        index.write_text(original)
        edit(index, lambda i, name=name: i["weight_map"].update({NORM: name}))
        assert "outside the folder" in refusal(sharded)
    index.write_text(original)
    edit(index, lambda i: i.update(weight_map=[]))
    assert "weight_map" in refusal(sharded)
    index.unlink()
    assert "no model.safetensors.index.json" in refusal(sharded)
    index.write_text(original)
    first.unlink()
    assert f"shards are not in the folder: {first.name}" in refusal(sharded)


def test_pickles_are_refused_with_the_way_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = refusal(folder)
    assert "pickle" in message
    assert "save_pretrained" in message


def test_what_is_not_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refusal(tmp_path / "empty")
    assert "Point at the folder" in refusal(folder / "model.safetensors")
    assert "is not a GGUF file" in refusal(folder / "config.json")
    edit(folder / "config.json", lambda c: c.update(architectures=["MambaForCausalLM"], model_type="mamba"))
    assert "Mamba" in refusal(folder)


def test_a_configuration_that_quantizes_weights_that_are_whole_is_refused(folder: Path) -> None:
    edit(folder / "config.json", lambda c: c.update(quantization_config={"quant_method": "awq", "bits": 4}))
    assert "quantization_config: says awq, and no module has a qweight" in refusal(folder)
    edit(folder / "config.json", lambda c: c.update(quantization_config={"quant_method": "awq", "bits": 3}))
    assert "config.json: quantization_config.bits" in refusal(folder)
