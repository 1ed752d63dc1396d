"""Single GGUF files: the real model and tiny ones of every architecture and block type."""

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from plimsoll.api.errors import CheckpointError, PlimsollError
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.gguf_config import llama3_divisors
from plimsoll.checkpoint.gguf_file import GgufFile, readable_types
from tests.support.checkpoints import make_checkpoint, make_gguf, make_model

GGUF_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
WRITABLE = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


@pytest.fixture(scope="module")
def llama() -> Any:
    return make_model("LlamaForCausalLM")


@pytest.fixture(scope="module")
def llama_gguf(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("gguf") / "llama.gguf", llama)


@pytest.mark.parametrize("architecture", GGUF_ARCHITECTURES)
@pytest.mark.parametrize("tied", [False, True])
def test_same_tensors_and_facts_as_the_folder_it_came_from(tmp_path: Path, architecture: str, tied: bool) -> None:
    folder = make_checkpoint(tmp_path / "model", architecture, tie_word_embeddings=tied)
    path = make_gguf(tmp_path / "model.gguf", make_model(architecture, tie_word_embeddings=tied))
    ours, theirs = open_checkpoint(path), open_checkpoint(folder)
    assert ours.format == "gguf"
    assert set(ours.tensors) == set(theirs.tensors)
    for name in theirs.tensors:
        raw = ours.read(name)
        assert raw.dtype == "F32"
        np.testing.assert_array_equal(raw.data, theirs.read(name).data)
    for field in (
        "architecture", "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads",
        "head_dim", "max_position", "layers", "final_norm", "tie_embeddings", "rope", "eos_token_ids", "bos_token_id",
    ):  # fmt: skip
        assert getattr(ours.facts, field) == getattr(theirs.facts, field), field
    assert ours.facts.dtype == "BF16"


def test_internlm2_comes_as_the_llama_it_is(tmp_path: Path, llama: Any) -> None:
    checkpoint = open_checkpoint(make_gguf(tmp_path / "i.gguf", llama, architecture="internlm2"))
    assert checkpoint.facts.architecture == "LlamaForCausalLM"
    for name, tensor in llama.state_dict().items():
        np.testing.assert_array_equal(checkpoint.read(name).data, tensor.numpy())


@pytest.mark.parametrize("block_type", WRITABLE)
def test_block_types_dequantize_as_the_gguf_package_does(tmp_path: Path, llama: Any, block_type: str) -> None:
    checkpoint = open_checkpoint(make_gguf(tmp_path / "q.gguf", llama, block_type=block_type))
    kind = gguf.GGMLQuantizationType[block_type]
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"):
        value = llama.state_dict()[name].numpy()
        expected = gguf.quants.dequantize(gguf.quants.quantize(value, kind), kind)
        np.testing.assert_array_equal(checkpoint.read(name).data, expected)
        fact = checkpoint.tensors[name]
        assert (fact.dtype, fact.shape) == (block_type, value.shape)
    name = "model.layers.0.self_attn.q_proj.weight"
    error = np.abs(checkpoint.read(name).data - llama.state_dict()[name].numpy())
    assert error.max() < 0.15, "rows are back in Hugging Face's order"


def test_every_block_type_of_the_package_opens_and_dequantizes(tmp_path: Path) -> None:
    """Types the package can read and not write, from random blocks: 256 columns hold a whole block of any of them."""
    from plimsoll.checkpoint.gguf_checkpoint import GgufCheckpoint

    model = make_model("LlamaForCausalLM", hidden_size=256, intermediate_size=256, num_hidden_layers=1, vocab_size=16)
    name = "model.layers.0.mlp.up_proj.weight"
    for kind in sorted(readable_types() - {gguf.GGMLQuantizationType.F32}):
        _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        per_row = 256 // gguf.GGML_QUANT_SIZES[kind][0] * block_bytes
        packed = np.random.default_rng(int(kind)).integers(0, 255, (256, per_row), dtype=np.uint8)
        path = tmp_path / f"{kind.name}.gguf"
        make_gguf(path, model, replace={"blk.0.ffn_up.weight": (packed, kind)})
        checkpoint = open_checkpoint(path)
        assert isinstance(checkpoint, GgufCheckpoint)
        with np.errstate(all="ignore"):
            expected = gguf.quants.dequantize(packed, kind)
        np.testing.assert_array_equal(checkpoint.read(name).data, expected)
        np.testing.assert_array_equal(checkpoint.read(name, (100, 131)).data, expected[100:131])


def test_rows_across_the_order_of_heads(llama_gguf: Path) -> None:
    checkpoint = open_checkpoint(llama_gguf)
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight", "model.norm.weight"):
        whole = checkpoint.read(name).data
        for rows in ((0, 0), (3, 21), (16, 32), (0, len(whole))):
            np.testing.assert_array_equal(checkpoint.read(name, rows).data, whole[slice(*rows)])


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 500_000.0},
        {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
        {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64},
    ],
)
def test_rotary_scaling_from_metadata(tmp_path: Path, rope: dict[str, Any]) -> None:
    facts = open_checkpoint(make_gguf(tmp_path / "r.gguf", make_model("LlamaForCausalLM", rope_parameters=rope))).facts
    assert facts.rope.kind == rope["rope_type"]
    assert facts.rope.theta == rope["rope_theta"]
    if "factor" in rope:
        assert facts.rope.params["factor"] == rope["factor"]


def test_llama3_scaling_from_its_table(tmp_path: Path) -> None:
    theta, factor = 500_000.0, 8.0
    rope = {"rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    model = make_model(
        "LlamaForCausalLM", head_dim=64, hidden_size=128, rope_parameters=rope, max_position_embeddings=131_072
    )
    frequencies = theta ** (-np.arange(0, 64, 2) / 64)
    table = (frequencies / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    np.testing.assert_allclose(llama3_divisors(frequencies, factor, 8192), table, rtol=1e-5)
    path = make_gguf(tmp_path / "l3.gguf", model, extra={"rope_freqs.weight": table})
    checkpoint = open_checkpoint(path)
    assert checkpoint.facts.rope.kind == "llama3"
    assert checkpoint.config["rope_scaling"] == {key: value for key, value in rope.items() if key != "rope_theta"}
    odd = make_gguf(tmp_path / "odd.gguf", model, extra={"rope_freqs.weight": table[::-1].copy()})
    with pytest.raises(CheckpointError, match="Llama 3's rule"):
        open_checkpoint(odd)


def test_real_model(smollm2_gguf: Path) -> None:
    tracemalloc.start()
    checkpoint = open_checkpoint(smollm2_gguf)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000, "neither weights nor vocabulary are in memory"
    facts = checkpoint.facts
    assert (facts.architecture, facts.num_layers, facts.hidden_size) == ("LlamaForCausalLM", 30, 576)
    assert (facts.num_heads, facts.num_kv_heads, facts.head_dim) == (9, 3, 64)
    assert (facts.vocab_size, facts.max_position, facts.tie_embeddings) == (49_152, 8_192, True)
    assert (facts.rope.theta, facts.final_norm.eps, facts.dtype) == (100_000.0, 1e-5, "BF16")
    assert (facts.bos_token_id, facts.eos_token_ids) == (1, (2,))
    assert checkpoint.digest() == open_checkpoint(smollm2_gguf).digest()
    assert checkpoint.tensors["model.layers.0.mlp.up_proj.weight"].dtype == "Q4_1"
    assert checkpoint.total_bytes == 96_576_768


def test_layout_is_what_the_packages_reader_finds(llama_gguf: Path) -> None:
    ours = GgufFile(llama_gguf)
    theirs = gguf.GGUFReader(llama_gguf)
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert (mine.kind, mine.start, mine.nbytes) == (tensor.tensor_type, tensor.data_offset, tensor.n_bytes)
        assert mine.shape == tuple(reversed(tensor.shape.tolist()))
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            value = ours.array(key)
            assert (ours.metadata[key] if value is None else value) == field.contents()


def refusal(path: Path) -> str:
    with pytest.raises(PlimsollError) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def patched(source: Path, target: Path, offset: int, data: bytes) -> Path:
    whole = bytearray(source.read_bytes())
    whole[offset : offset + len(data)] = data
    target.write_bytes(whole)
    return target


@pytest.mark.parametrize(
    ("offset", "data", "words"),
    [
        (0, b"GGML", "is not a GGUF file"),
        (4, struct.pack("<I", 1), "version"),
        (4, struct.pack(">I", 3), "big-endian"),
        (8, struct.pack("<Q", 2**64 - 1), "counts more tensors"),
        (16, struct.pack("<Q", 2**40), "counts more metadata entries"),
        (24, struct.pack("<Q", 2**62), "bytes in a string"),
        (24, struct.pack("<Q", 2**23), "inside a string"),
    ],
)
def test_damaged_header(llama_gguf: Path, tmp_path: Path, offset: int, data: bytes, words: str) -> None:
    assert words in refusal(patched(llama_gguf, tmp_path / "bad.gguf", offset, data))


def test_truncated_anywhere(llama_gguf: Path, tmp_path: Path) -> None:
    data = llama_gguf.read_bytes()
    for size in [0, 3, 23, *range(24, len(data), len(data) // 60), len(data) - 32]:
        bad = tmp_path / "cut.gguf"
        bad.write_bytes(data[:size])
        refusal(bad)


def test_file_cut_after_opening_is_an_error_and_not_a_crash(llama_gguf: Path, tmp_path: Path) -> None:
    path = patched(llama_gguf, tmp_path / "cut.gguf", 0, b"GGUF")
    checkpoint = open_checkpoint(path)
    with open(path, "r+b") as file:
        file.truncate(50_000)
    last = max(checkpoint.tensors, key=lambda name: checkpoint.tensors[name].nbytes)
    with pytest.raises(CheckpointError, match="promised"):
        checkpoint.read(last)


def test_what_this_version_does_not_serve(tmp_path: Path, llama: Any) -> None:
    assert "mamba" in refusal(make_gguf(tmp_path / "a.gguf", llama, architecture="mamba"))
    assert "no place for" in refusal(
        make_gguf(tmp_path / "b.gguf", llama, extra={"blk.0.attn_q_norm.weight": np.ones(16, np.float32)})
    )
    assert "belongs to no architecture" in refusal(
        make_gguf(tmp_path / "c.gguf", llama, extra={"blk.0.ffn_gate_exps.weight": np.ones((2, 32), np.float32)})
    )
    assert "cannot be dequantized" in refusal(
        make_gguf(tmp_path / "d.gguf", llama, extra={"blk.0.attn_q.bias": np.ones(64, np.int32)})
    )


def test_folder_with_one_gguf(llama_gguf: Path) -> None:
    assert open_checkpoint(llama_gguf.parent).path == llama_gguf
    other = llama_gguf.with_name("other.gguf")
    other.write_bytes(llama_gguf.read_bytes())
    assert "holds 2 GGUF files" in refusal(llama_gguf.parent)
    other.unlink()


def test_transformers_reads_the_tiny_ones_too(llama_gguf: Path, llama: Any) -> None:
    """The maker of tiny files is itself held against an independent reader."""
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(
        llama_gguf.parent, gguf_file=llama_gguf.name, dtype=torch.float32, local_files_only=True
    )
    for name, tensor in llama.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor), name
