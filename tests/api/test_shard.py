"""What each rank of a tensor-parallel group holds."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.api.errors import SpecError
from plimsoll.api.facts import facts_from_config
from plimsoll.api.model import ModelFacts
from plimsoll.api.quantization import Quantization
from plimsoll.api.shard import Shard, shards, tensor_sizes

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}  # fmt: skip


def model(heads: int, kv_heads: int, inner: int = 1536, vocab: int = 49152, dim: int = 64) -> ModelFacts:
    """A llama of these shapes."""
    sizes = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": dim}
    return facts_from_config(CONFIG | sizes | {"intermediate_size": inner, "vocab_size": vocab})


def runs(facts: ModelFacts, tensor: int) -> tuple[Shard, ...]:
    """The shards, at bfloat16."""
    return shards(facts, tensor, "bfloat16")


@given(
    st.integers(1, 12), st.integers(1, 9), st.integers(1, 3000), st.integers(1, 70000), st.integers(1, 64)
)  # fmt: skip
def test_every_head_row_and_word_lies_where_it_is_needed(
    kv_heads: int, group: int, inner: int, vocab: int, tensor: int
) -> None:
    facts = model(kv_heads * group, kv_heads, inner, vocab)
    if tensor not in tensor_sizes(facts):
        with pytest.raises(SpecError, match="Sizes that work: 1"):
            runs(facts, tensor)
        return
    held = runs(facts, tensor)
    for parts, end in (
        ([shard.queries for shard in held], kv_heads * group),
        ([shard.inner for shard in held], inner),
        ([shard.vocab for shard in held], vocab),
    ):
        assert parts[0][0] == 0
        assert parts[-1][1] == end
        assert all(one[1] == two[0] for one, two in pairwise(parts))
        sizes = [stop - start for start, stop in parts]
        assert min(sizes) > 0
        assert max(sizes) == sizes[0]
    for shard in held:
        # The kernels map query i of a rank to its key-value head i // (queries / keys): that must be the model's.
        own = shard.facts(facts)
        assert own.num_heads % own.num_kv_heads == 0
        for query in range(own.num_heads):
            key = shard.keys[0] + query // (own.num_heads // own.num_kv_heads)
            assert (shard.queries[0] + query) // group == key


def test_the_sizes_of_models_that_people_serve() -> None:
    assert tensor_sizes(model(9, 3)) == tuple(range(1, 10))
    demo = runs(model(9, 3), 2)
    assert [shard.keys for shard in demo] == [(0, 2), (2, 3)]
    assert [shard.queries for shard in demo] == [(0, 6), (6, 9)]
    assert [shard.keys for shard in runs(model(9, 3), 4)] == [(0, 1), (1, 2), (2, 3), (2, 3)]
    assert [shard.queries for shard in runs(model(9, 3), 4)] == [(0, 3), (3, 6), (6, 8), (8, 9)]
    big = model(64, 8, 28672, 128256, 128)
    assert {8, 16, 32, 64} <= set(tensor_sizes(big))
    assert [shard.keys for shard in runs(big, 16)] == [(head // 2, head // 2 + 1) for head in range(16)]


def test_a_group_of_codes_is_never_cut() -> None:
    stored = Quantization(format="awq", bits=4, group_size=128, symmetric=False)
    facts = replace(model(28, 4, 18944, 152064, 128), quantization=stored)
    for tensor in tensor_sizes(facts, "w4a16"):
        for shard in shards(facts, tensor, "w4a16"):
            for role in ("o", "down"):
                start, stop = shard.columns(facts, role)
                assert start % 128 == stop % 128 == 0
    # Two heads share a group: seven queries of one key-value head cannot be halved, four key-value heads can.
    narrow = replace(model(28, 4, 18944, 152064, 64), quantization=stored)
    assert tensor_sizes(narrow, "w4a16") == (1, 2)
    with pytest.raises(SpecError, match=r"2 at a time as the groups of its codes need.*Sizes that work: 1, 2$"):
        shards(narrow, 4, "w4a16")
