"""Ranks of a tensor-parallel group: together the same answers as one device, from a part of the bytes each."""

import json
import threading
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.api.device import DeviceFacts
from plimsoll.api.errors import SpecError
from plimsoll.api.facts import facts_from_config
from plimsoll.api.families.registry import all_families
from plimsoll.api.layer_tensors import expected_tensors
from plimsoll.api.precision import Precision
from plimsoll.api.shard import Shard, shards, tensor_sizes
from plimsoll.api.sizes import weight_bytes
from plimsoll.checkpoint import open_checkpoint
from plimsoll.runtime.models.decoder import Decoder
from plimsoll.runtime.models.loader import load_decoder
from tests.support.checkpoints import make_checkpoint
from tests.support.memory_model import make_source, tiny_facts
from tests.support.rank_answers import answers, assert_same_answers, count_reads, load
from tests.support.ranks import ThreadRank, on_ranks
from tests.support.tables import bfloat16_tables, float32_tables

TABLES = float32_tables()

#: Nine queries on three keys over two ranks leave one a half of the other, over four one key lies on two.
ODD = {
    "vocab_size": 331, "hidden_size": 72, "intermediate_size": 100, "num_attention_heads": 9, "num_key_value_heads": 3,
    "head_dim": 16,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", {}),
    "Llama, biased": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "Mistral": ("MistralForCausalLM", {}),
    "Qwen2": ("Qwen2ForCausalLM", {}),
    "Qwen3": ("Qwen3ForCausalLM", {}),
    "InternLM2": ("InternLM2ForCausalLM", {}),
    "Gemma 2": ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 24}),
    "Gemma 3": ("Gemma3ForCausalLM", {"query_pre_attn_scalar": 16}),
    "Phi-3": ("Phi3ForCausalLM", {"hidden_size": 144}),
}


def test_every_family_is_among_them() -> None:
    assert {architecture for architecture, _ in MODELS.values()} == set(all_families())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", MODELS)
def test_ranks_answer_as_one_device(tmp_path: Path, name: str, tied: bool) -> None:
    architecture, changes = MODELS[name]
    folder = make_checkpoint(
        tmp_path / "model", architecture, tokenizer=False, tie_word_embeddings=tied, **ODD | changes
    )
    for kernels in TABLES[-1:] if tied else TABLES:
        alone = answers(load(folder, kernels)(None))
        for tensor in (2, 3, 4) if kernels is TABLES[-1] else (3,):
            assert_same_answers(load(folder, kernels), tensor, alone)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", ["Llama, biased", "InternLM2", "Phi-3"])
def test_a_rank_reads_its_part_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, tied: bool
) -> None:
    architecture, changes = MODELS[name]
    folder = make_checkpoint(
        tmp_path / "model", architecture, tokenizer=False, tie_word_embeddings=tied, **ODD | changes
    )
    checkpoint, asked = open_checkpoint(folder), count_reads(monkeypatch)
    for tensor in (2, 3, 4):
        parts = shards(checkpoint.facts, tensor, "float32")

        def read(rank: ThreadRank, parts: tuple[Shard, ...] = parts) -> tuple[int, int]:
            before = asked[threading.get_ident()]
            part = parts[rank.rank]
            decoder = load_decoder(checkpoint, checkpoint.facts, TABLES[0], torch.float32, shard=part, group=rank)
            return asked[threading.get_ident()] - before, decoder.weight_bytes

        device = DeviceFacts("cpu", 1 << 30, TABLES[0].facts)
        for part, (read_bytes, held) in zip(parts, on_ranks(tensor, read), strict=True):
            assert read_bytes == held == weight_bytes(checkpoint.facts, "float32", device, part)


@settings(max_examples=20, deadline=None)
@given(
    kv_heads=st.integers(1, 4),
    group=st.integers(1, 4),
    dim=st.sampled_from([4, 6, 20, 32]),
    inner=st.integers(3, 9).flatmap(lambda more: st.sampled_from([more * 7, more * 32])),
    vocab=st.integers(40, 97),
    architecture=st.sampled_from(["LlamaForCausalLM", "InternLM2ForCausalLM", "Phi3ForCausalLM"]),
    precision=st.sampled_from(["float32", "w8a16", "w4a16"]),
    tied=st.booleans(),
    biased=st.booleans(),
    data=st.data(),
)
def test_shapes_that_do_not_divide(
    kv_heads: int, group: int, dim: int, inner: int, vocab: int, architecture: str, precision: Precision, tied: bool,
    biased: bool, data: Any,
) -> None:  # fmt: skip
    facts = tiny_facts(
        windows=(None,), spec={"qkv_bias": biased, "output_bias": biased, "mlp_bias": biased, "scale": dim**-0.5},
        architecture=architecture, vocab_size=vocab, hidden_size=32, intermediate_size=inner, head_dim=dim,
        num_heads=kv_heads * group, num_kv_heads=kv_heads, tie_embeddings=tied,
    )  # fmt: skip
    try:
        sizes = tensor_sizes(facts, precision)
    except SpecError:
        assert precision == "w4a16"
        return
    source, kernels = make_source(facts), TABLES[-1]
    device = DeviceFacts("cpu", 1 << 30, kernels.facts)

    def of(rank: ThreadRank | None) -> Decoder:
        part = None if rank is None else shards(facts, rank.size, precision)[rank.rank]
        found = load_decoder(
            source, facts, kernels, torch.float32, precision=precision, shard=part, group=rank
        )  # fmt: skip
        if precision == "float32":
            assert found.weight_bytes == weight_bytes(facts, precision, device, part)
        return found

    tensor = data.draw(st.sampled_from([size for size in sizes if 1 < size <= 8] or [1]))
    if tensor > 1:
        assert_same_answers(of, tensor, answers(of(None), words=vocab), words=vocab)


def _status(key: str) -> int:
    """Bytes of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def test_a_rank_takes_memory_for_its_part_alone(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 4, "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 8192,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    }  # fmt: skip
    facts, header, at = facts_from_config(config), dict[str, Any](), 0
    for name, shape in expected_tensors(facts).items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + 2 * prod(shape)]}
        at += 2 * prod(shape)
    (tmp_path / "config.json").write_text(json.dumps(config))
    text = json.dumps(header).encode()
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    checkpoint, kernels = open_checkpoint(tmp_path), bfloat16_tables()[-1]
    rank = ThreadRank(1, 4, threading.Lock(), threading.Barrier(4), [])
    part = shards(facts, 4, "bfloat16")[1]

    def loaded() -> tuple[int, int]:
        """Bytes of the weights, and the most that loading them took."""
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        decoder = load_decoder(checkpoint, facts, kernels, torch.bfloat16, shard=part, group=rank)
        return decoder.weight_bytes, _status("VmHWM") - before

    # What else this process takes meanwhile, libraries' pages among it, only adds.
    weights, taken = min(loaded() for _ in range(3))
    tensor = 2 * 8192 * 1024
    assert at / 4 < weights < at * 0.26
    assert taken < weights + tensor + (8 << 20)
