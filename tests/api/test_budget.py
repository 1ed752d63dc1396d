"""The budget: exact bytes, its invariants, what it refuses and what it proposes."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.api.budget import LEAST_CONTEXT, RUNS, Budget, Load, budget, short_context
from plimsoll.api.device import DeviceFacts, TableFacts
from plimsoll.api.errors import DoesNotFitError, SpecError
from plimsoll.api.facts import facts_from_config
from plimsoll.api.families.registry import find_family
from plimsoll.api.layer_tensors import FUSED, expected_tensors, role_shape, stored_linears
from plimsoll.api.model import ModelFacts, TensorFact
from plimsoll.api.names import OPTIONS
from plimsoll.api.quantization import Quantization
from plimsoll.api.shard import shards, tensor_sizes
from plimsoll.api.sizes import block_bytes, weight_bytes
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
    cache_precision=st.sampled_from(["auto", "float", "int8", "int4"]),
    ratio=st.floats(0.01, 1),
    block_size=st.sampled_from([16, 32, 64, 128, 256]),
    max_length=st.none() | st.integers(1, 50_000),
    tensor=st.sampled_from([1, "auto"]),
    max_running=st.integers(1, 512),
    host_bytes=st.sampled_from([0, 0, 1 << 20, 300 << 20, 20 * GIB]),
)
ROOMY = st.builds(DeviceFacts, kind=st.sampled_from(["cpu", "cuda"]), total=st.integers(100 * GIB, 800 * GIB))
DEVICES = st.builds(DeviceFacts, kind=st.sampled_from(["cpu", "cuda"]), total=st.integers(1, 200 * GIB))


def attempt(facts: ModelFacts, device: DeviceFacts, load: Load) -> Budget | None:
    try:
        return budget(facts, device, load)
    except DoesNotFitError:
        return None
    except SpecError as refused:
        # No group size divides what this shape multiplies: 4 bits are refused before any sum. Or the tier is too small.
        small_tier = bool(load.host_bytes) and refused.field == "spec.kvCache.hostMemory"
        assert small_tier or load.precision == "w4a16"
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


@given(configs(), st.sampled_from([None, 32, 128]))
def test_quantized_weights_carry_their_scales(facts: ModelFacts, head_group: int | None) -> None:
    device = DeviceFacts("cuda", GIB, TableFacts(head_group=head_group))
    arch = find_family(facts.architecture).names
    head = f"{arch.embedding if facts.tie_embeddings else arch.head}.weight"
    whole = {"lm_head.weight", "output.weight", "model.embed_tokens.weight", "model.tok_embeddings.weight"}
    eight = four = 0
    for name, shape in expected_tensors(facts).items():
        count = math.prod(shape)
        if name == head and head_group is not None:
            held = count + 4 * count // head_group
            eight, four = eight + held, four + held
            continue
        if len(shape) == 1 or name in whole:
            eight, four = eight + 2 * count, four + 2 * count
            continue
        rows, columns = shape
        group = next(size for size in (128, 64, 32) if columns % size == 0)
        # Scales in float32.
        eight += count + 4 * rows
        # Codes of 4 bits, scales of 16, zero points of 8.
        four += count // 2 + 3 * rows * columns // group
    assert weight_bytes(facts, "w8a16", device) == eight
    assert weight_bytes(facts, "w4a16", device) == four


QUANTIZED = [
    Quantization("awq", 4, 128, False), Quantization("awq", 4, 32, False), Quantization("gptq", 4, 0, True),
    Quantization("compressed-tensors", 4, 64, True), Quantization("compressed-tensors", 8, 0, True),
    Quantization("compressed-tensors", 8, 64, True),
]  # fmt: skip


def stored_as(facts: ModelFacts, said: Quantization, whole: str = "/") -> ModelFacts:
    """`facts` of a checkpoint quantized as `said`, modules with `whole` in their names left as they are."""
    tensors = {}
    for name, shape in expected_tensors(facts).items():
        linear = ".layers." in name and len(shape) == 2 and whole not in name
        tensors[name] = TensorFact(name, shape, f"W{said.bits}" if linear else "BF16", 2 * math.prod(shape))
    return replace(facts, quantization=said, tensors=tensors)


@given(
    configs(), st.sampled_from(QUANTIZED), st.sampled_from([1, 16, 32]), st.sampled_from(["/", "layers.0.", "down"]),
    st.booleans(),
)  # fmt: skip
def test_a_quantized_checkpoint_is_held_as_it_is_stored_but_for_its_head(
    facts: ModelFacts, said: Quantization, tile: int, whole: str, coded_head: bool
) -> None:
    facts = stored_as(facts, said, whole)
    precision = "w4a16" if said.bits == 4 else "w8a16"
    table = TableFacts(activation_bytes=4, row_tile=tile, head_group=32 if coded_head else None)
    device = DeviceFacts("cpu", GIB, table)
    arch = find_family(facts.architecture).names
    shapes, total = expected_tensors(facts), 0
    fused = [[arch.embedding], [] if facts.tie_embeddings else [arch.head]]
    for index, spec in enumerate(facts.layers):
        layer = arch.layer.format(index)
        for matrix in FUSED:
            fused.append([layer + linear.module for linear in stored_linears(arch, spec, matrix)])
    if any(said.group_size and shapes[f"{names[0]}.weight"][1] % said.group_size for names in fused[2:]):
        # No such checkpoint is opened; a configuration alone may say so.
        return
    for names in filter(None, fused):
        rows = sum(shapes[f"{name}.weight"][0] for name in names)
        rows = -(-rows // tile) * tile
        columns = shapes[f"{names[0]}.weight"][1]
        groups = columns // said.group_size if said.group_size else 1
        if coded_head and names == [arch.embedding if facts.tie_embeddings else arch.head]:
            total += rows * (columns + columns // 32 * 4)
        elif ".layers." not in names[0] or whole in names[0]:
            total += rows * columns * 2
        elif said.bits == 4:
            total += rows * (columns // 2 + groups * 3)
        else:
            total += rows * (columns + groups * 4)
    vectors = sum(math.prod(shape) for shape in shapes.values() if len(shape) == 1)
    assert weight_bytes(facts, precision, device) == total + 4 * vectors  # type: ignore[arg-type]
    bare = replace(facts, tensors=None)
    if whole == "/":
        assert weight_bytes(bare, precision, device) == total + 4 * vectors  # type: ignore[arg-type]
    # The other precisions make floats of it again, or are refused with the way out.
    assert weight_bytes(facts, "bfloat16", device) == weight_bytes(
        replace(facts, quantization=None), "bfloat16", device
    )
    with pytest.raises(SpecError, match=f"Use auto or {precision}"):
        weight_bytes(facts, "w8a16" if said.bits == 4 else "w4a16", device)


def test_a_matrix_with_one_whole_part_is_whole() -> None:
    facts = stored_as(facts_from_config(INTERNLM | {"architectures": ["LlamaForCausalLM"]}), QUANTIZED[0], "v_proj")
    packed = stored_as(facts, QUANTIZED[0])
    rows, columns = 4096 + 2 * 1024, 4096
    more = rows * columns * 2 - rows * (columns // 2 + columns // 128 * 3)
    assert weight_bytes(facts, "w4a16", CARD) - weight_bytes(packed, "w4a16", CARD) == 32 * more
    listed = replace(facts, tensors=None, quantization=replace(QUANTIZED[0], ignored=("v_proj", "re:.*visual")))
    assert weight_bytes(listed, "w4a16", CARD) == weight_bytes(facts, "w4a16", CARD)


@given(configs(), st.integers(1, 16), st.sampled_from(QUANTIZED))
def test_shards_of_quantized_weights_are_sized_or_refused(facts: ModelFacts, tensor: int, said: Quantization) -> None:
    facts = stored_as(facts, said)
    precision: Any = "w4a16" if said.bits == 4 else "w8a16"
    if any(columns % (said.group_size or 1) for columns in (facts.num_heads * facts.head_dim, facts.hidden_size)):
        with pytest.raises(SpecError, match="do not divide a matrix"):
            weight_bytes(facts, precision, CARD)
        return
    if tensor not in tensor_sizes(facts, precision):
        with pytest.raises(SpecError, match="Sizes that work: 1") as caught:
            budget(facts, DeviceFacts("cuda", 1 << 50), Load(tensor=tensor))
        assert caught.value.field == "spec.parallelism.tensor"
        return
    found = shards(facts, tensor, precision)
    for shard in found:
        for role in ("o", "down"):
            start, stop = shard.columns(facts, role)
            # A group as long as its row is the row's one scale, which each rank has.
            cut = 0 < said.group_size < role_shape(facts, role)[1]
            assert not cut or start % said.group_size == stop % said.group_size == 0
    assert weight_bytes(facts, precision, CARD) <= weight_bytes(facts, precision, CARD, found[0]) * tensor


def test_auto_serves_a_quantized_checkpoint_as_it_is() -> None:
    for said, precision in ((QUANTIZED[0], "w4a16"), (QUANTIZED[4], "w8a16")):
        facts = stored_as(FACTS, said)
        found = budget(facts, CARD, Load(max_length=8192))
        assert (found.precision, found.rejected) == (precision, ())
        assert budget(facts, CARD, Load(max_length=8192, precision="bfloat16")).precision == "bfloat16"
        with pytest.raises(SpecError, match=f"Use auto or {precision}"):
            budget(facts, CARD, Load(precision="w4a16" if precision == "w8a16" else "w8a16"))
    with pytest.raises(DoesNotFitError, match=r"needs 4\.\d GiB weights"):
        budget(stored_as(FACTS, QUANTIZED[0]), DeviceFacts("cuda", 5 * GIB), Load())


@given(configs(), st.sampled_from([16, 64, 256]))
def test_a_block_is_the_bytes_of_its_tokens(facts: ModelFacts, size: int) -> None:
    heads, dim = facts.num_layers * facts.num_kv_heads * size, facts.head_dim
    for cache, key, value in (
        ("float", 2 * dim, 2 * dim),
        ("int8", dim + 4, dim + 4),
        ("int4", dim // 2 + -(-dim // 4) + 4, dim // 2 + 4),
    ):
        assert block_bytes(facts, size, "bfloat16", cache) == heads * (key + value)  # type: ignore[arg-type]
    assert block_bytes(facts, size, "float32") == heads * 2 * 4 * dim


@settings(max_examples=80, deadline=None)
@given(configs(), DEVICES | ROOMY, LOADS)
def test_what_fits_stays_below_the_line_and_holds_a_request(facts: ModelFacts, device: DeviceFacts, load: Load) -> None:
    found = attempt(facts, device, load)
    if found is None:
        return
    assert 0 <= found.headroom < found.total == device.total
    assert found.in_use == found.context + found.weights + found.workspace + found.kv_cache + found.fullest.host
    assert found.host_bytes <= load.host_bytes < found.host_bytes + found.block_bytes
    assert found.fullest.host == (found.host_bytes if device.kind == "cpu" else 0)
    free = found.total - found.context - found.weights - found.workspace - found.fullest.host
    assert (
        found.kv_cache == found.blocks * found.block_bytes <= load.ratio * free < found.kv_cache + found.block_bytes + 1
    )
    assert found.kv_tokens == found.blocks * found.block_size >= found.max_length >= 1
    assert found.concurrent_requests >= 1
    assert sum(found.workspace_terms.values()) == found.workspace


@settings(max_examples=80, deadline=None)
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


def test_a_refusal_shows_its_sum_and_ways_out() -> None:
    card = DeviceFacts("cuda", 33 * GIB // 2)
    with pytest.raises(DoesNotFitError) as caught:
        budget(FACTS, card, Load(precision="bfloat16", max_length=8192))
    said = str(caught.value)
    assert said.startswith("needs 14.4 GiB weights + 1.7 GiB workspace and context = 16.1 GiB of 16.5 GiB per device")
    assert "a cache of 8192 tokens in int8 takes 528.0 MiB" in said
    assert "fits with: context.maxLength 5440" in said
    assert "precision w8a16" in said
    assert "parallelism.tensor 2" in said
    assert "a device of 17120Mi" in said


def test_auto_takes_the_least_degraded_and_says_what_it_passed_over() -> None:
    load = Load(max_length=8192)
    assert [budget(FACTS, DeviceFacts("cuda", size * GIB), load).precision for size in (24, 16, 9)] == [
        "bfloat16", "w8a16", "w4a16",
    ]  # fmt: skip
    found = budget(FACTS, DeviceFacts("cuda", 9 * GIB), load)
    assert [item.option for item in found.rejected] == ["precision bfloat16", "precision w8a16"]
    assert all("GiB" in item.reason for item in found.rejected)
    # The fewest devices come before the least degraded precision.
    spread = budget(FACTS, DeviceFacts("cuda", 10 * GIB), replace(load, tensor="auto"))
    assert (spread.precision, spread.tensor) == ("w4a16", 1)
    spread = budget(FACTS, DeviceFacts("cuda", 10 * GIB), replace(load, tensor="auto", precision="bfloat16"))
    assert (spread.precision, spread.tensor) == ("bfloat16", 2)


def test_engines_that_run_are_offered_only_what_they_run() -> None:
    load = Load(max_length=8192, tensor="auto")
    assert budget(FACTS, DeviceFacts("cuda", 10 * GIB), load, RUNS).tensor == 1
    with pytest.raises(DoesNotFitError):
        budget(FACTS, DeviceFacts("cuda", 10 * GIB), replace(load, precision="bfloat16"), RUNS)
    assert budget(FACTS, DeviceFacts("cpu", 10 * GIB), replace(load, precision="bfloat16"), RUNS).tensor == 2
    with pytest.raises(DoesNotFitError, match=r"14\.4 GiB weights"):
        budget(FACTS, DeviceFacts("cuda", 9 * GIB), load, RUNS - {"w8a16", "w4a16"})
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
    assert refused.value.ways == ("kvCache.ratio 0.8 instead of an absolute size", "a cache of 264Mi (cache in int8)")


def test_a_context_that_memory_cuts_short_is_said_and_below_the_least_refused() -> None:
    least = LEAST_CONTEXT // 64
    block = block_bytes(FACTS, 64, "bfloat16")
    for blocks, trained, words in ((least, 32768, f"{LEAST_CONTEXT} tokens of the 32768"), (2, 128, None)):
        load = Load(precision="bfloat16", cache_bytes=blocks * block, trained_length=trained)
        found = budget(FACTS, CARD, load)
        note = short_context(found, load)
        assert found.max_length == blocks * 64
        assert note is None if words is None else words in (note or "")
        assert note is None or "Set --session-len to" in (short_context(found, load, OPTIONS) or "")
    coded = block_bytes(FACTS, 64, "bfloat16", "int8")
    short = Load(precision="bfloat16", cache_bytes=least * coded, trained_length=32768)
    assert budget(FACTS, CARD, short).cache_precision == "int8"
    short = replace(short, cache_bytes=least * coded - 1)
    with pytest.raises(DoesNotFitError, match=f"a cache of {LEAST_CONTEXT} tokens in int8 takes"):
        budget(FACTS, CARD, short)
    asked = replace(short, max_length=(least - 1) * 64)
    assert short_context(budget(FACTS, CARD, asked), asked) is None
