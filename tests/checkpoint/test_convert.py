"""`plimsoll convert`: what it writes is what transformers, and we, read back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from plimsoll.api.errors import CheckpointError, SpecError
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.convert import convert_gguf
from plimsoll.checkpoint.safetensors_writer import encode, plan_shards
from plimsoll.cli.main import main
from tests.support.checkpoints import make_gguf, make_model


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()


@pytest.mark.parametrize(
    "architecture", ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"]
)
def test_every_architecture_comes_back_the_same(tmp_path: Path, architecture: str) -> None:
    model = make_model(architecture)
    out = convert_gguf(make_gguf(tmp_path / "m.gguf", model), tmp_path / "out", "float32")
    assert type(load(out)).__name__ == architecture
    ids = torch.arange(40)[None] % 320
    with torch.no_grad():
        assert torch.equal(load(out)(ids).logits, model(ids).logits)
    checkpoint = open_checkpoint(out)
    assert (checkpoint.facts.dtype, checkpoint.facts.architecture) == ("F32", architecture)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_precisions_round_as_torch_does(tmp_path: Path, dtype: str) -> None:
    model = make_model("LlamaForCausalLM")
    out = convert_gguf(make_gguf(tmp_path / "m.gguf", model), tmp_path / "out", dtype)
    loaded = load(out)
    assert loaded.dtype == getattr(torch, dtype)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.to(loaded.dtype)), name


def test_rounding_of_every_kind_of_value() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32)
    special = np.array(
        [0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0x7F7FFFFF, 0x3F808000, 0x3F818000], np.uint32
    )
    values = np.concatenate([bits, special]).view(np.float32)
    ours = torch.from_numpy(encode(values, "BF16", "x")).view(torch.bfloat16).float()
    theirs = torch.from_numpy(values).to(torch.bfloat16).float()
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours[~ours.isnan()], theirs[~theirs.isnan()])
    with pytest.raises(CheckpointError, match="65504"):
        encode(np.array([1.0, 1e5], np.float32), "F16", "x")


def test_shards_fill_in_order_and_never_split_a_tensor() -> None:
    shapes = {"a": (10,), "b": (10,), "c": (100,), "d": (1,)}
    assert [shard.tensors for shard in plan_shards(shapes, "F32", 80)] == [("a", "b"), ("c",), ("d",)]
    assert plan_shards(shapes, "F32", 10**9)[0].name == "model.safetensors"


def test_nothing_is_left_of_a_run_that_fails(tmp_path: Path) -> None:
    model = make_model("LlamaForCausalLM")
    with torch.no_grad():
        model.model.norm.weight.fill_(1e6)
    path = make_gguf(tmp_path / "m.gguf", model)
    with pytest.raises(CheckpointError, match="65504"):
        convert_gguf(path, tmp_path / "out", "float16")
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]


def test_refusals(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", make_model("LlamaForCausalLM"))
    (tmp_path / "there").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        convert_gguf(path, tmp_path / "there")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="exists already"):
        convert_gguf(path, tmp_path / "dangling")
    with pytest.raises(SpecError, match="int8"):
        convert_gguf(path, tmp_path / "out", "int8")
    with pytest.raises(CheckpointError, match="cannot be written"):
        convert_gguf(path, path / "below-a-file")
    with pytest.raises(CheckpointError, match="cannot be read"):
        convert_gguf(tmp_path / "absent.gguf", tmp_path / "out")


def test_command_shows_progress_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_gguf(tmp_path / "m.gguf", make_model("LlamaForCausalLM"))
    with pytest.raises(SystemExit) as done:
        main(["convert", str(path), str(tmp_path / "out"), "--dtype", "float16", "--max-shard-size", "100Ki"])
    shown = capsys.readouterr()
    assert done.value.code == 0, shown.err
    assert f"Wrote {tmp_path / 'out'}" in shown.out.replace("\n", "")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == open_checkpoint(tmp_path / "out").total_bytes
    with pytest.raises(SystemExit) as refused:
        main(["convert", str(path), str(tmp_path / "out")])
    assert refused.value.code == 1
    assert "exists already" in capsys.readouterr().err
