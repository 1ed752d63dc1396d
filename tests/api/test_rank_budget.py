"""The budget of each rank: its own bytes, what ranks hold together, and what is said where they differ."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from plimsoll.api.budget import CONTEXT_BYTES, FOLLOWER_SAVES, Budget, Load, budget
from plimsoll.api.collectives import (
    GLOO_BYTES,
    GLOO_RANK_BYTES,
    LEADER_GLOO_RANK_BYTES,
    LEADER_GLOO_SAVES,
    NCCL_BYTES,
    collective_bytes,
    segment_bytes,
)
from plimsoll.api.device import (
    CUDA_BUILD_BYTES,
    DRAWING_ROWS,
    ROUNDED_BYTES,
    DeviceFacts,
    DeviceKind,
    TableFacts,
    native_table,
)
from plimsoll.api.draft import draft_budget, draft_workspace
from plimsoll.api.errors import DoesNotFitError, SpecError
from plimsoll.api.facts import facts_from_config
from plimsoll.api.model import ModelFacts
from plimsoll.api.quantity import format_bytes
from plimsoll.api.rank_budget import uneven
from plimsoll.api.shard import replication, shards, tensor_sizes
from plimsoll.api.sizes import block_bytes, grammar_bytes, weight_bytes
from tests.api.test_budget import FACTS, INTERNLM, configs

GIB, MIB = 1 << 30, 1 << 20
#: Shapes of the demo model, which few sizes divide.
UNEVEN = facts_from_config(INTERNLM | {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "rope_scaling": None,
    "tie_word_embeddings": True, "max_position_embeddings": 8192,
})  # fmt: skip
CPU = DeviceFacts("cpu", 2 * GIB, native_table(32), CUDA_BUILD_BYTES)


def sized(facts: ModelFacts, device: DeviceFacts, load: Load) -> Budget | None:
    try:
        return budget(facts, device, load)
    except SpecError:
        return None


@settings(max_examples=60, deadline=None)
@given(
    configs(), st.sampled_from(["cpu", "cuda"]), st.integers(1, 12),
    st.sampled_from(["float32", "bfloat16", "w8a16", "w4a16"]), st.floats(0.01, 1), st.integers(1, 512),
)  # fmt: skip
def test_ranks_hold_the_same_blocks_below_their_lines(
    facts: ModelFacts, kind: DeviceKind, tensor: int, precision: Any, ratio: float, running: int
) -> None:
    device = DeviceFacts(kind, 500 * GIB, native_table(32) if kind == "cpu" else DeviceFacts(kind, 1).table)
    found = sized(facts, device, Load(precision, ratio=ratio, tensor=tensor, max_running=running))
    if found is None:
        return
    assert [rank.rank for rank in found.ranks] == list(range(tensor))
    assert {rank.blocks for rank in found.ranks} == {found.blocks}
    assert all(rank.headroom >= 0 and rank.in_use <= rank.total == device.total for rank in found.ranks)
    # No rank could hold a block more within its share, or the cache would be larger.
    free = [int(ratio * (rank.total - rank.fixed)) // rank.block_bytes for rank in found.ranks]
    assert found.blocks == min(free)
    assert sum(rank.weights for rank in found.ranks) >= weight_bytes(facts, precision, device)
    first = found.ranks[0]
    assert found.fullest is first
    assert all(rank.in_use <= first.in_use for rank in found.ranks)
    assert found.per_device() == {
        "total": first.total, "context": first.context, "weights": first.weights, "workspace": first.workspace,
        "kvCache": first.cache, "headroom": first.headroom,
    }  # fmt: skip


@pytest.mark.parametrize("precision", ["bfloat16", "w4a16"])
@pytest.mark.parametrize("tensor", [2, 3, 4])
def test_a_rank_holds_its_own_shard_and_nothing_else(tensor: int, precision: Any) -> None:
    load = Load(precision, tensor=tensor, max_running=32, max_batched_tokens=512, max_length=1024)
    found = budget(UNEVEN, CPU, load)
    for rank, shard in zip(found.ranks, shards(UNEVEN, tensor, precision), strict=True):
        assert rank.shard == shard
        assert rank.context == CONTEXT_BYTES["cpu"] + CUDA_BUILD_BYTES - (FOLLOWER_SAVES if rank.rank else 0)
        assert rank.weights == weight_bytes(UNEVEN, precision, CPU, shard)
        keys, queries = (stop - start for start, stop in (shard.keys, shard.queries))
        assert rank.block_bytes == block_bytes(UNEVEN, 64, precision, shard=shard) == 30 * 2 * keys * 64 * 64 * 2
        width, words = shard.inner[1] - shard.inner[0], shard.vocab[1] - shard.vocab[0]
        row = 3 * 576 + 2 * (queries + keys) * 64 + 3 * width
        assert rank.workspace_terms == {
            "activations": 512 * row * 4,
            # Rank 0 gathers and samples; the others keep their part of the vocabulary alone.
            "logits": 4 * (32 * words + ((32 + DRAWING_ROWS) * 49152 if shard.rank == 0 else 0)),
            "positions": 1024 * 64 * 4,
            "kernels": ROUNDED_BYTES,
            "grammars": grammar_bytes(49152, 32) if shard.rank == 0 else 0,
            "collectives": segment_bytes(tensor) if shard.rank == 0 else 0,
        }
    assert found.ranks_bytes == tensor * CPU.total


@given(configs(), st.integers(1, 12), st.sampled_from(["bfloat16", "w4a16", "w8a16"]))
def test_ranks_hold_the_model_between_them(facts: ModelFacts, tensor: int, precision: Any) -> None:
    device = DeviceFacts("cuda", 24 * GIB, TableFacts(head_group=32))
    try:
        sizes = tensor_sizes(facts, precision)
    except SpecError:
        return
    if tensor not in sizes:
        with pytest.raises(SpecError, match="Sizes that work: 1") as caught:
            budget(facts, DeviceFacts("cuda", 24 * GIB), Load(precision=precision, tensor=tensor))
        assert caught.value.field == "spec.parallelism.tensor"
        return
    whole = weight_bytes(facts, precision, device)
    held = shards(facts, tensor, precision)
    ranks = [weight_bytes(facts, precision, device, shard) for shard in held]
    assert max(ranks) == ranks[0]
    assert whole <= sum(ranks)
    blocks = [block_bytes(facts, 64, precision, shard=shard) for shard in held]
    heads = [block // block_bytes(replace(facts, num_kv_heads=1, num_heads=1), 64, precision) for block in blocks]
    assert sum(heads) == max(facts.num_kv_heads, tensor)
    assert (replication(facts, tensor) is None) == (tensor <= facts.num_kv_heads)


def test_a_size_that_no_model_of_these_heads_takes_is_refused_with_the_sizes_that_work() -> None:
    with pytest.raises(SpecError, match=r"32 attention heads cannot be split over 33 .*Sizes that work: 1 to 32"):
        budget(FACTS, DeviceFacts("cuda", 24 * GIB), Load(tensor=33))
    assert replication(FACTS, 16) == "each of the 8 key-value heads lies on 2 devices"
    assert replication(FACTS, 12) == "each of the 8 key-value heads lies on 1 or 2 devices"


def test_one_rank_is_the_whole_model_and_talks_to_no_other() -> None:
    found = budget(UNEVEN, CPU, Load("bfloat16"))
    (rank,) = found.ranks
    assert rank.described() | {"rank": 0, "heads": 9, "kvHeads": 3, "width": 1536, "vocabulary": 49152} == (
        rank.described()
    )
    assert rank.weights == weight_bytes(UNEVEN, "bfloat16", CPU)
    assert rank.workspace_terms["collectives"] == 0


def test_collectives_are_a_term_of_their_own() -> None:
    assert segment_bytes(2) == 64 * 1024 + 2 * 2 * MIB + 2 * MIB
    assert segment_bytes(4) - segment_bytes(2) == 4 * MIB
    card = budget(FACTS, DeviceFacts("cuda", 24 * GIB), Load(tensor=2))
    assert [rank.workspace_terms["collectives"] for rank in card.ranks] == [NCCL_BYTES, NCCL_BYTES]
    # Grammars lie in the host's memory there.
    assert [rank.workspace_terms["grammars"] for rank in card.ranks] == [0, 0]
    assert card.per_rank()[1]["collectives"] == NCCL_BYTES


@st.composite
def even(draw: st.DrawFn) -> tuple[ModelFacts, int]:
    """A model of which a group of t and one of 2 t ranks hold equal parts, and t."""
    tensor = draw(st.integers(1, 4))
    heads = 2 * tensor * draw(st.integers(1, 3))
    config = INTERNLM | {
        "architectures": ["LlamaForCausalLM"], "vocab_size": 24 * tensor * draw(st.integers(100, 4000)),
        "hidden_size": 64 * draw(st.integers(8, 100)), "intermediate_size": 64 * tensor * draw(st.integers(64, 200)),
        "num_hidden_layers": draw(st.integers(4, 60)), "num_attention_heads": heads * draw(st.integers(1, 4)),
        "num_key_value_heads": heads, "head_dim": 64, "rope_scaling": None,
        "tie_word_embeddings": draw(st.booleans()),
    }  # fmt: skip
    return facts_from_config(config), tensor


@settings(max_examples=60, deadline=None)
@given(even(), st.sampled_from(["cpu", "cuda"]), st.integers(1, 200))
def test_more_devices_never_hold_fewer_blocks_each(model: tuple[ModelFacts, int], kind: DeviceKind, gib: int) -> None:
    facts, tensor = model
    device, load = DeviceFacts(kind, gib * GIB), Load("bfloat16", max_length=512, max_running=16)
    try:
        few = budget(facts, device, replace(load, tensor=tensor))
    except DoesNotFitError:
        return
    roomy = budget(facts, replace(device, total=1 << 50), replace(load, tensor=2 * tensor))
    assert not uneven(roomy.ranks, facts)
    assert roomy.weights <= few.weights
    assert roomy.block_bytes < few.block_bytes
    # A model as small as the buffers gains nothing by more devices.
    added = sum(roomy.workspace_terms[name] - few.workspace_terms[name] for name in ("collectives", "logits"))
    assume(added <= few.weights - roomy.weights)
    many = budget(facts, device, replace(load, tensor=2 * tensor))
    assert many.blocks >= few.blocks
    assert all(rank.in_use <= rank.total for rank in many.ranks)


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (1, ()), (3, ()),
        (2, ("rank 0 holds 2 of 3 key-value heads: it decides the budget",)),
        (4, ("ranks 0 and 1 hold 3 of 9 attention heads each, and the others fewer: rank 0 decides the budget",)),
        (5, ("rank 0 holds 3 of 9 attention heads: it decides the budget",)),
        (7, ("ranks 0 and 2 hold 2 of 9 attention heads each, and the others fewer: rank 0 decides the budget",)),
    ],
)  # fmt: skip
def test_what_is_uneven_is_said_in_plain_words(tensor: int, said: tuple[str, ...]) -> None:
    found = budget(UNEVEN, CPU, Load("bfloat16", tensor=tensor))
    assert uneven(found.ranks, UNEVEN) == said


@pytest.mark.parametrize("tensor", [2, 3, 5])
def test_a_draft_is_on_the_line_of_rank_0_alone(tensor: int) -> None:
    """Each rank has as many blocks; those of rank 0 hold the draft's part too."""
    load = Load("bfloat16", tensor=tensor, host_bytes=64 * MIB)
    small = replace(UNEVEN, layers=UNEVEN.layers[:10])
    plain, found = budget(UNEVEN, CPU, load), budget(UNEVEN, CPU, replace(load, draft=small))
    beside = draft_budget(small, CPU, "bfloat16", "float", load.block_size, UNEVEN.max_position)
    first, *others = found.ranks
    assert found.draft == beside
    assert (first.draft, first.draft_block) == (beside.weights, beside.block)
    assert first.block_bytes == plain.ranks[0].block_bytes + beside.block
    taken = draft_workspace(beside, first.workspace_terms["logits"], CPU)
    assert first.workspace == plain.ranks[0].workspace + taken
    assert first.host_block == plain.ranks[0].host_block
    assert found.blocks == int(0.8 * (first.total - first.fixed)) // first.block_bytes < plain.blocks
    for rank, before in zip(others, plain.ranks[1:], strict=True):
        assert rank == replace(before, blocks=found.blocks)
        assert rank.in_use < first.in_use
    assert found.fullest is first
    assert ["draft" in terms for terms in found.per_rank()] == [True, *([False] * (tensor - 1))]
    *said, last = uneven(found.ranks, UNEVEN)
    assert tuple(said) == uneven(plain.ranks, UNEVEN)
    assert last.startswith(f"rank 0 alone runs the draft, which takes {format_bytes(beside.weights)} and ")
    assert last.endswith(" of each block of the cache: it decides the budget")
    assert uneven(budget(UNEVEN, CPU, replace(load, tensor=1, draft=small)).ranks, UNEVEN) == ()


def test_a_draft_computes_where_the_models_logits_come_later() -> None:
    """On a CPU: it guesses before the step that makes them."""
    beside = draft_budget(UNEVEN, CPU, "bfloat16", "float", 64, 2048)
    assert draft_workspace(beside, 0, CPU) == beside.held + beside.passing
    assert draft_workspace(beside, beside.passing - 1, CPU) == beside.held + 1
    assert draft_workspace(beside, beside.passing + 1, CPU) == beside.held
    card = DeviceFacts("cuda", 24 * GIB)
    assert draft_workspace(beside, beside.passing, card) == beside.held + beside.passing


def test_auto_takes_more_ranks_where_a_draft_leaves_one_too_little() -> None:
    line, load = replace(CPU, total=1050 * MIB), Load("bfloat16", tensor="auto", max_length=2048)
    assert budget(UNEVEN, line, load).tensor == 1
    assert budget(UNEVEN, line, replace(load, draft=replace(UNEVEN, layers=UNEVEN.layers[:6]))).tensor == 2


def test_a_feed_forward_that_does_not_divide_is_said() -> None:
    facts = replace(FACTS, intermediate_size=14336 + 32)
    found = budget(facts, DeviceFacts("cuda", 24 * GIB), Load("bfloat16", tensor=8))
    assert uneven(found.ranks, facts) == (
        "rank 0 holds 1824 of 14368 columns of the feed-forward: it decides the budget",
    )


def test_devices_of_several_sizes_are_sized_by_the_smallest_of_the_group() -> None:
    card, sizes = DeviceFacts("cuda", 80 * GIB), (80 * GIB, 24 * GIB, 16 * GIB)
    load = Load("bfloat16", max_length=4096)
    for tensor, line in ((1, 80), (2, 24), (3, 16)):
        found = budget(FACTS, card, replace(load, tensor=tensor), devices=sizes)
        assert found.total == line * GIB
        assert found.devices == sizes[:tensor]
        assert {rank.total for rank in found.ranks} == {line * GIB}
    (said, *_) = uneven(found.ranks, FACTS, found.devices)
    assert said == (
        "devices of 16.0 GiB, 24.0 GiB and 80.0 GiB are in one group: each rank is sized for the smallest, 16.0 GiB"
    )
    # A line that is drawn below all of them stays.
    assert budget(FACTS, replace(card, total=12 * GIB), replace(load, tensor=2), devices=sizes).total == 12 * GIB
    with pytest.raises(SpecError, match=r"more than the devices of this machine \(found 4\)\. At most 3"):
        budget(FACTS, card, replace(load, tensor=4), devices=sizes)
    few = replace(load, tensor="auto")
    assert budget(FACTS, card, few, devices=(10 * GIB, 10 * GIB)).tensor == 2
    with pytest.raises(DoesNotFitError, match="smallest that auto may take"):
        budget(FACTS, card, replace(few, precision="float32"), devices=(10 * GIB, 10 * GIB))


def test_auto_tries_every_size_up_to_eight_and_lists_what_it_passed_over() -> None:
    facts = replace(FACTS, num_heads=36, num_kv_heads=6, head_dim=128, intermediate_size=18432)
    load = Load("bfloat16", max_length=8192, tensor="auto")
    taken = {}
    with pytest.raises(DoesNotFitError, match="on 8 devices, the smallest that auto may take"):
        budget(facts, DeviceFacts("cuda", 3 * GIB), load)
    for mib in range(6500, 26000, 1500):
        found = budget(facts, DeviceFacts("cuda", mib * MIB), load)
        taken[found.tensor] = found
        options = [item.option for item in found.rejected]
        assert [option for option in options if "cache" not in option] == [
            "precision bfloat16" + (f", tensor {size}" if size > 1 else "")
            for size in range(1, found.tensor + (found.cache_precision == "int8"))
        ]
        assert all("GiB" in item.reason for item in found.rejected)
        if found.tensor > 1:
            with pytest.raises(DoesNotFitError):
                budget(facts, DeviceFacts("cuda", mib * MIB), replace(load, tensor=found.tensor - 1))
    assert {1, 2, 3} <= set(taken), sorted(taken)
    # The fewest devices come first, in the least degraded precision that fits on as many.
    for gib in (10, 6):
        spread = budget(facts, DeviceFacts("cuda", gib * GIB), replace(load, precision="auto"))
        sizes = [int(one.option.partition("tensor ")[2] or 1) for one in spread.rejected]
        assert sizes == sorted(sizes)
        assert all(size <= spread.tensor for size in sizes)


def test_auto_says_which_sizes_do_not_split() -> None:
    facts = replace(FACTS, num_heads=4, num_kv_heads=4, head_dim=1024)
    with pytest.raises(DoesNotFitError) as caught:
        budget(facts, DeviceFacts("cuda", 2 * GIB), Load("bfloat16", tensor="auto"))
    assert "on 4 devices" in str(caught.value)
    # A precision that no number of these devices holds: each size is listed, with its sum or why it does not split.
    found = budget(facts, DeviceFacts("cuda", 4 * GIB), Load("auto", tensor="auto", max_length=512))
    assert (found.precision, found.tensor) == ("w4a16", 3)
    assert [item.option for item in found.rejected] == [
        f"precision {precision}" + (f", tensor {size}" if size > 1 else "")
        for size in (1, 2, 3) for precision in ("bfloat16", "w8a16", "w4a16")
    ][:-1]  # fmt: skip
    with pytest.raises(DoesNotFitError) as caught:
        budget(facts, DeviceFacts("cuda", 2 * GIB), Load("auto", tensor="auto", max_length=512))
    assert "4 attention heads cannot be split over 5" in str(caught.value)


def test_ranks_of_several_nodes_each_take_what_gloo_does() -> None:
    on_one = [collective_bytes("cpu", 4, rank) for rank in range(4)]
    on_two = [collective_bytes("cpu", 4, rank, 2) for rank in range(4)]
    assert on_one == [segment_bytes(4), 0, 0, 0]
    full = GLOO_BYTES + 4 * GLOO_RANK_BYTES
    assert on_two == [full - LEADER_GLOO_SAVES, full, full, full]
    # Rank 0 has no logits while it adds, and the largest vocabulary still leaves it a part of gloo's memory.
    assert collective_bytes("cpu", 4, 0, 2, 1 << 20) == full - LEADER_GLOO_SAVES - (1 << 20)
    assert collective_bytes("cpu", 4, 0, 2, 1 << 30) == 4 * LEADER_GLOO_RANK_BYTES
