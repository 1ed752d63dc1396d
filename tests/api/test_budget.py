"""The budget: exact bytes, its invariants, what it refuses and what it proposes."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.api.budget import RUNS, Budget, Load, budget
from plimsoll.api.device import DeviceFacts, TableFacts
from plimsoll.api.errors import DoesNotFitError, SpecError
from plimsoll.api.facts import expected_tensors, facts_from_config
from plimsoll.api.model import ModelFacts
from plimsoll.api.sizes import block_bytes, kv_heads_per_rank, replication, tensor_sizes, weight_bytes
from plimsoll.checkpoint import open_checkpoint
from tests.support.checkpoints import ARCHITECTURES, make_checkpoint

GIB = 1 << 30
CARD = DeviceFacts(kind="cuda", total=24 * GIB)
#: The config.json of internlm/internlm2_5-7b-chat, as far as memory depends on it.
INTERNLM: dict[str, Any] = {
    "architectures": ["InternLM2ForCausalLM"], "vocab_size": 92544, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5, "rope_theta": 1000000, "rope_scaling": {"type": "dynamic", "factor": 2.0}, "bias": False,
    "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
FACTS = facts_from_config(INTERNLM)


@pytest.mark.parametrize(
    ("precision", "ratio", "cache", "measured"),
    [
        ("bfloat16", 0.8, "auto", 23.0),
        ("bfloat16", 0.4, "auto", 19.0),
        ("w4a16", 0.8, "auto", 20.9),
        ("w4a16", 0.4, "int4", 13.5),
    ],
)
def test_a_bare_config_gives_what_was_measured_on_a_24_gb_card(
    precision: Any, ratio: float, cache: Any, measured: float
) -> None:
    # LMDeploy's figures, in GiB as nvidia-smi counts; everything but precision and ratio at its default.
    found = budget(FACTS, CARD, Load(precision=precision, ratio=ratio, cache_precision=cache))
    assert found.in_use / GIB == pytest.approx(measured, rel=0.03)


def configs(**fixed: Any) -> st.SearchStrategy[ModelFacts]:
    """Facts of random shapes of every architecture."""

    @st.composite
    def made(draw: st.DrawFn) -> ModelFacts:
        kv_heads, group = draw(st.sampled_from([1, 2, 3, 4, 8])), draw(st.sampled_from([1, 2, 3, 4]))
        config = {
            "architectures": [draw(st.sampled_from(ARCHITECTURES))], "vocab_size": draw(st.integers(1, 70000)),
            "hidden_size": 128 * draw(st.integers(1, 40)), "intermediate_size": 128 * draw(st.integers(1, 60)),
            "num_hidden_layers": draw(st.integers(1, 40)), "num_attention_heads": kv_heads * group,
            "num_key_value_heads": kv_heads, "head_dim": 32 * draw(st.integers(1, 8)),
            "max_position_embeddings": draw(st.integers(16, 100_000)), "tie_word_embeddings": draw(st.booleans()),
            "attention_bias": draw(st.booleans()), "bias": draw(st.booleans()), "mlp_bias": draw(st.booleans()),
        }  # fmt: skip
        return facts_from_config(config | fixed)

    return made()


LOADS = st.builds(
    Load,
    precision=st.sampled_from(["float32", "bfloat16", "w8a16", "w4a16", "auto"]),
    cache_precision=st.sampled_from(["auto", "int8", "int4"]),
    ratio=st.floats(0.01, 1),
    block_size=st.sampled_from([16, 32, 64, 128, 256]),
    max_length=st.none() | st.integers(1, 50_000),
    tensor=st.sampled_from([1, "auto"]),
    max_running=st.integers(1, 512),
)
ROOMY = st.builds(DeviceFacts, kind=st.sampled_from(["cpu", "cuda"]), total=st.integers(100 * GIB, 800 * GIB))
DEVICES = st.builds(DeviceFacts, kind=st.sampled_from(["cpu", "cuda"]), total=st.integers(1, 200 * GIB))


def attempt(facts: ModelFacts, device: DeviceFacts, load: Load) -> Budget | None:
    try:
        return budget(facts, device, load)
    except DoesNotFitError:
        return None
    except SpecError:
        # No group size divides what this shape multiplies: 4 bits are refused before any sum.
        assert load.precision == "w4a16"
        return None


@given(configs(), st.sampled_from(["float32", "bfloat16"]), st.sampled_from([2, 4]))
def test_weights_are_the_bytes_of_the_tensors(facts: ModelFacts, precision: Any, activation: int) -> None:
    device = DeviceFacts("cpu", GIB, TableFacts(activation_bytes=activation))
    size = 4 if precision == "float32" else 2
    shapes = expected_tensors(facts).values()
    assert weight_bytes(facts, precision, device) == sum(
        math.prod(shape) * (size if len(shape) == 2 else activation) for shape in shapes
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_are_the_bytes_in_the_headers(architecture: str, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model", architecture, dtype="bfloat16", tokenizer=False)
    checkpoint = open_checkpoint(path)
    assert weight_bytes(checkpoint.facts, "bfloat16", CARD) == checkpoint.total_bytes


@given(configs())
def test_quantised_weights_carry_their_scales(facts: ModelFacts) -> None:
    whole = {"lm_head.weight", "output.weight", "model.embed_tokens.weight", "model.tok_embeddings.weight"}
    eight = four = 0
    for name, shape in expected_tensors(facts).items():
        count = math.prod(shape)
        if len(shape) == 1 or name in whole:
            eight, four = eight + 2 * count, four + 2 * count
            continue
        rows, columns = shape
        group = next(size for size in (128, 64, 32) if columns % size == 0)
        eight += count + 2 * rows
        # Codes and zero points 4 bits, scales 16.
        four += count // 2 + 2 * rows * columns // group + rows * columns // group / 2
    assert weight_bytes(facts, "w8a16", CARD) == eight
    # Zero points are packed in words of eight, by fused matrix: at most a word each is lost.
    assert 0 <= weight_bytes(facts, "w4a16", CARD) - four < 4 * 4 * facts.num_layers + 1


@given(configs(), st.sampled_from([16, 64, 256]))
def test_a_block_is_the_bytes_of_its_tokens(facts: ModelFacts, size: int) -> None:
    vectors = facts.num_layers * 2 * facts.num_kv_heads * size
    for cache, vector in (
        ("auto", 2 * facts.head_dim),
        ("int8", facts.head_dim + 4),
        ("int4", facts.head_dim // 2 + 4),
    ):
        assert block_bytes(facts, size, "bfloat16", cache) == vectors * vector  # type: ignore[arg-type]
    assert block_bytes(facts, size, "float32") == vectors * 4 * facts.head_dim


@settings(max_examples=200, deadline=None)
@given(configs(), DEVICES | ROOMY, LOADS)
def test_what_fits_stays_below_the_line_and_holds_a_request(facts: ModelFacts, device: DeviceFacts, load: Load) -> None:
    found = attempt(facts, device, load)
    if found is None:
        return
    assert 0 <= found.headroom < found.total == device.total
    assert found.in_use == found.context + found.weights + found.workspace + found.kv_cache
    free = found.total - found.context - found.weights - found.workspace
    assert (
        found.kv_cache == found.blocks * found.block_bytes <= load.ratio * free < found.kv_cache + found.block_bytes + 1
    )
    assert found.kv_tokens == found.blocks * found.block_size >= found.max_length >= 1
    assert found.concurrent_requests >= 1
    assert sum(found.workspace_terms.values()) == found.workspace


@settings(max_examples=200, deadline=None)
@given(configs(), DEVICES | ROOMY, LOADS, st.floats(0.01, 1), st.integers(0, 50 * GIB))
def test_more_memory_or_a_larger_share_never_holds_less(
    facts: ModelFacts, device: DeviceFacts, load: Load, ratio: float, more: int
) -> None:
    load = replace(load, precision="bfloat16", tensor=1)
    smaller = attempt(facts, device, load)
    if smaller is None:
        return
    for larger in (
        attempt(facts, replace(device, total=device.total + more), load),
        attempt(facts, device, replace(load, ratio=max(load.ratio, ratio))),
    ):
        assert larger is not None
        assert larger.blocks >= smaller.blocks
        assert larger.weights == smaller.weights


@settings(max_examples=200, deadline=None)
@given(configs(), DEVICES, LOADS)
def test_every_way_out_is_one(facts: ModelFacts, device: DeviceFacts, load: Load) -> None:
    load = replace(load, tensor=1)
    try:
        budget(facts, device, load)
        return
    except DoesNotFitError as error:
        ways = error.ways
    asked = replace(load, precision="bfloat16") if load.precision == "auto" else load
    fields = {
        "context.maxLength": ("max_length", int), "kvCache.ratio": ("ratio", float),
        "kvCache.precision": ("cache_precision", str), "precision": ("precision", str),
        "parallelism.tensor": ("tensor", int),
    }  # fmt: skip
    assert ways[-1].startswith("a device of")
    for way in ways[:-1]:
        name, value, *_ = way.split()
        field, kind = fields[name]
        assert attempt(facts, device, replace(asked, **{field: kind(value)})), way


@given(configs(), st.integers(1, 64))
def test_a_rank_holds_its_share(facts: ModelFacts, tensor: int) -> None:
    if tensor not in tensor_sizes(facts):
        with pytest.raises(SpecError, match="Sizes that work: 1"):
            budget(facts, CARD, Load(precision="bfloat16", tensor=tensor))
        return
    whole, share = weight_bytes(facts, "bfloat16", CARD), weight_bytes(facts, "bfloat16", CARD, tensor)
    assert whole <= share * tensor
    heads = kv_heads_per_rank(facts, tensor)
    assert heads * tensor == max(facts.num_kv_heads, tensor)
    assert (replication(facts, tensor) is None) == (tensor <= facts.num_kv_heads)


def test_heads_that_do_not_divide_are_refused_with_the_sizes_that_work() -> None:
    with pytest.raises(SpecError, match=r"32 attention heads do not divide by 3 .*Sizes that work: 1, 2, 4, 8, 16, 32"):
        budget(FACTS, CARD, Load(tensor=3))
    assert replication(FACTS, 16) == "each of the 8 key-value heads lies on 2 devices"


def test_a_refusal_shows_its_sum_and_ways_out() -> None:
    card = DeviceFacts("cuda", 17 * GIB)
    with pytest.raises(DoesNotFitError) as caught:
        budget(FACTS, card, Load(precision="bfloat16", max_length=8192))
    said = str(caught.value)
    assert "needs 14.4 GiB weights + 1.7 GiB workspace and context = 16.1 GiB of 17.0 GiB per device" in said
    assert "fits with: context.maxLength 6080" in said
    assert "precision w8a16" in said
    assert "parallelism.tensor 2" in said
    assert "a device of 17.3 GiB" in said


def test_auto_takes_the_least_degraded_and_says_what_it_passed_over() -> None:
    load = Load(max_length=8192)
    assert [budget(FACTS, DeviceFacts("cuda", size * GIB), load).precision for size in (24, 16, 9)] == [
        "bfloat16", "w8a16", "w4a16",
    ]  # fmt: skip
    found = budget(FACTS, DeviceFacts("cuda", 9 * GIB), load)
    assert [item.option for item in found.rejected] == ["precision bfloat16", "precision w8a16"]
    assert all("GiB" in item.reason for item in found.rejected)
    spread = budget(FACTS, DeviceFacts("cuda", 10 * GIB), replace(load, tensor="auto"))
    assert (spread.precision, spread.tensor) == ("bfloat16", 2)


def test_engines_that_run_are_offered_only_what_they_run() -> None:
    load = Load(max_length=8192, tensor="auto")
    with pytest.raises(DoesNotFitError, match=r"14\.4 GiB weights"):
        budget(FACTS, DeviceFacts("cuda", 9 * GIB), load, RUNS)
    assert budget(FACTS, DeviceFacts("cuda", 64 * GIB), load, frozenset({"float32"})).precision == "float32"


def test_an_absolute_cache_is_taken_whole_or_refused() -> None:
    found = budget(FACTS, CARD, Load(precision="bfloat16", cache_bytes=GIB))
    assert found.kv_cache == GIB == 8192 * found.block_bytes // found.block_size
    with pytest.raises(DoesNotFitError, match=r"kvCache.ratio 0.8 instead"):
        budget(FACTS, CARD, Load(precision="bfloat16", cache_bytes=20 * GIB))


@pytest.mark.parametrize(
    ("load", "field"),
    [
        (Load(ratio=0), "spec.kvCache.ratio"),
        (Load(ratio=float("nan")), "spec.kvCache.ratio"),
        (Load(block_size=48), "spec.kvCache.blockSize"),
        (Load(max_length=0), "spec.context.maxLength"),
        (Load(tensor=0), "spec.parallelism.tensor"),
        (Load(max_running=0), "spec.serving.maxRunningRequests"),
        (Load(max_batched_tokens=0), "spec.serving.maxBatchedTokens"),
    ],
)
def test_incoherent_wishes_name_their_field(load: Load, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        budget(FACTS, CARD, load)
    assert caught.value.field == field


def test_a_cache_too_small_for_a_request_fits_no_device() -> None:
    with pytest.raises(DoesNotFitError) as refused:
        budget(FACTS, DeviceFacts("cuda", 24 * GIB), Load("bfloat16", cache_bytes=1, max_length=4096))
    assert refused.value.ways == ("kvCache.ratio 0.8 instead of an absolute size", "a cache of 512.0 MiB")
