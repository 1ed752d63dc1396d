"""Quantized checkpoints opened and read: the weights they mean, by rows and whole; damage refused by name."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from plimsoll.api.device import DeviceFacts
from plimsoll.api.errors import CheckpointError
from plimsoll.api.quantization import Quantization
from plimsoll.api.sizes import weight_bytes
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.quantized.manifest import Manifest, hash_files, write_manifest
from tests.support import quantized
from tests.support.checkpoints import ARCHITECTURES

Tensors = dict[str, Any]
DOWN = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize("said", quantized.ALL.values(), ids=quantized.ALL)
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "InternLM2ForCausalLM"])
def test_every_weight_reads_as_the_floats_it_stands_for(tmp_path: Path, architecture: str, said: Quantization) -> None:
    folder, floats = quantized.make_quantized(tmp_path / "model", said, architecture)
    found, twin = open_checkpoint(folder), open_checkpoint(floats)
    assert found.facts.quantization == said
    assert {name: fact.shape for name, fact in found.tensors.items()} == {
        name: fact.shape for name, fact in twin.tensors.items()
    }
    assert found.total_bytes == sum(value.nbytes for value in load_file(folder / "model.safetensors").values())
    codes = {name for name, fact in found.tensors.items() if fact.dtype == f"W{said.bits}"}
    assert codes == {name for name in twin.tensors if name.removesuffix(".weight").endswith(quantized.LINEARS)}
    for name, fact in twin.tensors.items():
        raw, whole = found.read(name), twin.read(name).data
        assert raw.shape == fact.shape
        assert np.array_equal(raw.data, whole)
        some = (3, fact.shape[0] - 2)
        assert np.array_equal(found.read(name, some).data, whole[some[0] : some[1]])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_biases_and_norms_are_read_as_they_are(tmp_path: Path, architecture: str) -> None:
    folder, floats = quantized.make_quantized(tmp_path / "model", quantized.AWQ, architecture)
    found, twin = open_checkpoint(folder), open_checkpoint(floats)
    for name in twin.tensors:
        assert np.array_equal(found.read(name).data, twin.read(name).data)


def test_codes_are_read_as_they_are_stored(tmp_path: Path) -> None:
    folder, _ = quantized.make_quantized(tmp_path / "model", quantized.AWQ)
    checkpoint = open_checkpoint(folder)
    linear = checkpoint.read_quantized(DOWN, (5, 37))
    assert (linear.shape, linear.bits, linear.group, linear.scale_dtype) == ((32, 96), 4, 32, "F16")
    assert np.array_equal(linear.dequantize(), checkpoint.read(f"{DOWN}.weight", (5, 37)).data)
    for name in ("model.norm", "model.embed_tokens", "no.such"):
        with pytest.raises(KeyError):
            checkpoint.read_quantized(name)


def test_modules_kept_whole_are_read_whole(tmp_path: Path) -> None:
    folder, floats = quantized.make_quantized(tmp_path / "model", quantized.AWQ, whole=("layers.0.", "v_proj"))
    found, twin = open_checkpoint(folder), open_checkpoint(floats)
    name = "model.layers.1.self_attn.{}_proj.weight"
    assert [found.tensors[name.format(part)].dtype for part in "qkv"] == ["W4", "W4", "F32"]
    for tensor in twin.tensors:
        assert np.array_equal(found.read(tensor).data, twin.read(tensor).data)


def damaged(folder: Path, change: Callable[[Tensors], object]) -> str:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, file)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert caught.value.fix
    return str(caught.value)


DAMAGE: list[tuple[str, Callable[[Tensors], object], str]] = [
    ("awq", lambda t: t.pop(f"{DOWN}.qzeros"), f"{DOWN}.qzeros: is missing"),
    ("awq", lambda t: t.pop(f"{DOWN}.qweight"), "is there without its qweight"),
    ("awq", lambda t: t.update({f"{DOWN}.scales": t[f"{DOWN}.scales"][:2]}), "has F16 or BF16 [3, 64] here"),
    ("awq", lambda t: t.update({n: v.astype("f4") for n, v in t.items() if "scales" in n}), "has F16 or BF16 ["),
    ("awq", lambda t: t.update({f"{DOWN}.qweight": t[f"{DOWN}.qweight"].view("f4")}), "has I32 [96, 8] here"),
    ("awq", lambda t: t.update({f"{DOWN}.qweight": t[f"{DOWN}.qweight"].reshape(-1)}), "two dimensions"),
    ("awq", lambda t: t.update({f"{DOWN}.qweight": t[f"{DOWN}.qweight"][:80]}), "groups of 32 do not divide"),
    ("awq", lambda t: t.update({f"{DOWN}.weight": np.zeros((64, 96), "f4")}), "is stored whole and quantized"),
    ("awq", lambda t: t.update({"lm_head.qweight": t[f"{DOWN}.qweight"]}), "lm_head.weight: is stored whole"),
    ("ct", lambda t: t.pop(f"{DOWN}.weight_shape"), f"{DOWN}.weight_shape: is missing"),
    ("ct", lambda t: t.pop(f"{DOWN}.weight_zero_point"), f"{DOWN}.weight_zero_point: is missing"),
    ("ct", lambda t: t.update({f"{DOWN}.weight_scale": t[f"{DOWN}.weight_scale"].T}), "has F16 or BF16 [64, 3] here"),
    ("ct-symmetric", lambda t: t.update({f"{DOWN}.weight_zero_point": np.zeros((8, 3), "i4")}), "symmetric"),
    ("gptq", lambda t: t.update({f"{DOWN}.g_idx": t[f"{DOWN}.g_idx"][:-1]}), "has I32 [96] here"),
    ("gptq", lambda t: t.update({f"{DOWN}.qweight": t[f"{DOWN}.qweight"].T}), "qzeros: a weight of [12, 512]"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "change", "message"), DAMAGE)
def test_damage_is_found_on_opening(
    tmp_path: Path, said: str, change: Callable[[Tensors], object], message: str
) -> None:
    folder, _ = quantized.make_quantized(tmp_path / "model", quantized.ALL[said], num_hidden_layers=2)
    assert message in damaged(folder, change)


def test_a_quantized_head_is_refused(tmp_path: Path) -> None:
    folder, _ = quantized.make_quantized(tmp_path / "model", quantized.AWQ, vocab_size=64, intermediate_size=64)

    def quantize_head(tensors: Tensors) -> None:
        del tensors["lm_head.weight"]
        tensors.update({f"lm_head.{suffix}": tensors[f"{DOWN}.{suffix}"] for suffix in ("qweight", "qzeros", "scales")})

    assert "quantized embedding or head" in damaged(folder, quantize_head)


def test_codes_without_a_configuration_are_refused(tmp_path: Path) -> None:
    folder, _ = quantized.make_quantized(tmp_path / "model", quantized.AWQ)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="has no quantization_config"):
        open_checkpoint(folder)


def test_scales_of_two_dtypes_are_refused(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file as load
    from safetensors.torch import save_file as save

    folder, _ = quantized.make_quantized(tmp_path / "model", quantized.AWQ)
    tensors = load(folder / "model.safetensors")
    tensors[f"{DOWN}.scales"] = tensors[f"{DOWN}.scales"].to(torch.bfloat16)
    save(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="scales are of several dtypes"):
        open_checkpoint(folder)


@pytest.mark.parametrize("bias", [0, 1])
def test_biases_that_gptq_adds_change_nothing_or_are_refused(tmp_path: Path, bias: int) -> None:
    folder, floats = quantized.make_quantized(tmp_path / "model", quantized.GPTQ)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {f"{DOWN}.bias": np.full(64, bias, "f2")}, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    if bias:
        with pytest.raises(CheckpointError, match="has no bias here"):
            checkpoint.read(f"{DOWN}.weight")
    else:
        whole = open_checkpoint(floats).read(f"{DOWN}.weight").data
        assert np.array_equal(checkpoint.read(f"{DOWN}.weight").data, whole)


def test_a_scale_that_is_no_number_is_named_when_it_is_read(tmp_path: Path) -> None:
    folder, _ = quantized.make_quantized(tmp_path / "model", quantized.AWQ)
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{DOWN}.scales"][0, 0] = np.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{DOWN}.scales: 1 of 192 scales are not finite"):
        open_checkpoint(folder).read(f"{DOWN}.weight")


def test_an_output_that_failed_its_gate_is_not_opened(tmp_path: Path) -> None:
    folder, _ = quantized.make_quantized(tmp_path / "model", quantized.AWQ)
    files = hash_files(folder, ["config.json", "model.safetensors"])
    write_manifest(folder, Manifest(files, "passed"))
    open_checkpoint(folder)
    write_manifest(folder, Manifest(files, "failed", "KL divergence 0.31, 0.05 is allowed"))
    with pytest.raises(CheckpointError, match=r"failed its gate: KL divergence 0\.31, 0\.05 is allowed"):
        open_checkpoint(folder)


def test_weights_of_another_length_than_was_written_are_refused(tmp_path: Path) -> None:
    folder, _ = quantized.make_quantized(tmp_path / "model", quantized.AWQ)
    write_manifest(folder, Manifest(hash_files(folder, ["config.json", "model.safetensors"]), "none"))
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="was written with"):
        open_checkpoint(folder)


def test_the_digest_tells_apart_outputs_of_one_shape(tmp_path: Path) -> None:
    folder, _ = quantized.make_quantized(tmp_path / "model", quantized.AWQ)
    digests = set()
    for flip in (0, 1):
        tensors = load_file(folder / "model.safetensors")
        tensors[f"{DOWN}.qweight"][0, 0] ^= flip
        save_file(tensors, folder / "model.safetensors")
        write_manifest(folder, Manifest(hash_files(folder, ["model.safetensors"]), "passed"))
        digests.add(open_checkpoint(folder).digest())
    assert len(digests) == 2


def test_modules_that_gptq_skipped_are_whole_by_headers_and_by_configuration(tmp_path: Path) -> None:
    folder, floats = quantized.make_quantized(
        tmp_path / "gptq", quantized.GPTQ, whole=("layers.1.",), tokenizer=False, hidden_size=64, intermediate_size=96
    )
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["dynamic"] = {r"-:model\.layers\.1\..*": {}}
    (folder / "config.json").write_text(json.dumps(config))
    facts = open_checkpoint(folder).facts
    kinds = {name: fact.dtype for name, fact in (facts.tensors or {}).items() if name.endswith("up_proj.weight")}
    assert sorted(kinds.values()) == ["F32", "W4"]
    device = DeviceFacts("cpu", 1 << 30)
    assert weight_bytes(facts, "w4a16", device) == weight_bytes(replace(facts, tensors=None), "w4a16", device)
    name = "model.layers.1.mlp.up_proj.weight"
    assert np.array_equal(open_checkpoint(folder).read(name).data, open_checkpoint(floats).read(name).data)
