"""Loading: what it keeps, how much it holds at once, what it tells, what it refuses."""

import pytest
import torch

from plimsoll.api.errors import CheckpointError
from plimsoll.runtime.kernels.torch_ops import torch_kernels
from plimsoll.runtime.models import loader
from plimsoll.runtime.models.loader import load_decoder
from tests.support.memory_model import make_source, tiny_facts

FLOAT32 = torch_kernels("cpu", torch.float32)


@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_is_kept_once_in_the_precision_served(tied: bool) -> None:
    facts = tiny_facts(tie_embeddings=tied, spec={"qkv_bias": True})
    source = make_source(facts)
    decoder = load_decoder(source, facts, FLOAT32, torch.bfloat16)
    matrices = sum(array.size for array in source.tensors.values() if array.ndim == 2)
    vectors = sum(array.size for array in source.tensors.values() if array.ndim == 1)
    assert decoder.weight_bytes == 2 * matrices + 4 * vectors
    assert (decoder.head is decoder.embedding) == tied


def test_parts_are_fused_in_order() -> None:
    facts = tiny_facts()
    source = make_source(facts)
    layer = load_decoder(source, facts, FLOAT32, torch.float32).layers[1]
    parts = [source.tensors[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(layer.qkv, torch.cat([torch.from_numpy(part) for part in parts]))


def test_internlm2_rows_are_sorted_into_queries_keys_and_values() -> None:
    facts = tiny_facts(architecture="InternLM2ForCausalLM", spec={"qkv_bias": True})
    source = make_source(facts)
    layer = load_decoder(source, facts, FLOAT32, torch.float32).layers[0]
    for suffix, found in (("weight", layer.qkv), ("bias", layer.qkv_bias)):
        packed = torch.from_numpy(source.tensors[f"model.layers.0.attention.wqkv.{suffix}"])
        # Two key-value heads, each after its two queries: rows of 8 as q0 q1 k0 v0 q2 q3 k1 v1.
        rows = packed.unflatten(0, (8, 8))
        assert torch.equal(found, rows[[0, 1, 4, 5, 2, 6, 3, 7]].flatten(0, 1))


def test_reads_are_bounded_and_progress_counts_up_to_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "READ_ELEMENTS", 100)
    facts = tiny_facts()
    source = make_source(facts)
    seen: list[tuple[int, int]] = []
    decoder = load_decoder(
        source, facts, FLOAT32, torch.float32, on_progress=lambda done, total: seen.append((done, total))
    )
    assert max(source.reads) <= 100
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert {total for _, total in seen} == {decoder.weight_bytes}
    assert seen[-1][0] == decoder.weight_bytes


def test_half_precision_is_read_as_it_lies() -> None:
    facts = tiny_facts()
    source = make_source(facts)
    narrow = {name: torch.from_numpy(array).bfloat16() for name, array in source.tensors.items()}
    source.tensors = {name: tensor.view(torch.uint16).numpy() for name, tensor in narrow.items()}
    source.dtype = "BF16"
    decoder = load_decoder(source, facts, FLOAT32, torch.float32)
    assert torch.equal(decoder.embedding, narrow["model.embed_tokens.weight"].float())


def test_integers_are_not_weights() -> None:
    facts = tiny_facts()
    source = make_source(facts)
    source.dtype = "I8"
    with pytest.raises(CheckpointError, match=r"model\.embed_tokens\.weight.*floating point"):
        load_decoder(source, facts, FLOAT32, torch.float32)


def test_an_unknown_architecture_names_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match=r"GPT2LMHeadModel.*Qwen3ForCausalLM"):
        load_decoder(make_source(tiny_facts()), tiny_facts(architecture="GPT2LMHeadModel"), FLOAT32, torch.float32)
