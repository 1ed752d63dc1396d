"""`kvCache.precision: auto`: floats where they hold what is asked for, else int8, never int4, and a word on it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.api.budget import LEAST_CONTEXT, RUNS, Budget, Load, budget
from plimsoll.api.cache_loss import auto_caches, cache_chosen
from plimsoll.api.device import TORCH_TABLE, DeviceFacts
from plimsoll.api.errors import DoesNotFitError
from plimsoll.api.facts import facts_from_config
from plimsoll.api.sizes import block_bytes
from tests.support.miniature import CONFIG

MIB = 1 << 20
FACTS = facts_from_config(CONFIG)
BIASED = facts_from_config({**CONFIG, "attention_bias": True})
LOADS = st.builds(
    Load,
    precision=st.sampled_from(["auto", "float32", "bfloat16", "w8a16", "w4a16"]),
    ratio=st.floats(0.05, 1),
    block_size=st.sampled_from([16, 64, 256]),
    max_length=st.none() | st.integers(1, FACTS.max_position),
    max_batched_tokens=st.sampled_from([64, 512]),
    max_running=st.integers(1, 8),
)


def found(load: Load, mib: int) -> Budget | None:
    try:
        return budget(FACTS, DeviceFacts("cpu", mib * MIB, TORCH_TABLE), load, RUNS)
    except DoesNotFitError:
        return None


def blocks_of_floats(one: Budget, load: Load) -> int:
    """Blocks of cache that the same weights would leave room for, were it held in floats."""
    rank = one.fullest
    return int(load.ratio * max(0, rank.total - rank.fixed)) // block_bytes(FACTS, load.block_size, one.precision)


@given(LOADS, st.integers(360, 1200))
def test_codes_are_taken_only_where_floats_hold_too_little_and_never_of_four_bits(load: Load, mib: int) -> None:
    one = found(load, mib)
    if one is None:
        # No cache of codes that auto may take would have held it either.
        assert found(replace(load, cache_precision="int8"), mib) is None
        return
    needed = -(-(load.max_length or min(FACTS.max_position, LEAST_CONTEXT)) // load.block_size)
    assert one.blocks >= needed
    assert one.cache_precision == ("float" if blocks_of_floats(one, load) >= needed else "int8")
    named = replace(load, precision=one.precision, cache_precision=one.cache_precision)
    if one.cache_precision == "int8":
        exact = found(named, mib)
        assert exact is not None
        assert replace(one, rejected=()) == replace(exact, rejected=())
        assert one.rejected[-1].option == f"precision {one.precision}"


@given(LOADS, st.integers(360, 1200), st.integers(1, 400))
def test_more_memory_never_makes_the_cache_of_the_same_weights_coarser(load: Load, mib: int, more: int) -> None:
    small, large = found(load, mib), found(load, mib + more)
    if small is None or large is None or small.precision != large.precision:
        assert small is None or large is not None
        return
    assert (small.cache_precision, large.cache_precision) != ("float", "int8")


def between(cache_bytes: int = 0) -> Load:
    """A cache of 12 blocks of floats, for a request of 16."""
    block = block_bytes(FACTS, 16, "bfloat16")
    return Load("bfloat16", cache_bytes=cache_bytes or 12 * block, block_size=16, max_length=256)


def test_what_was_passed_over_is_listed_with_the_cache() -> None:
    large = DeviceFacts("cpu", 4096 * MIB, TORCH_TABLE)
    one = budget(FACTS, large, between(), RUNS)
    assert one.cache_precision == "int8"
    (passed,) = one.rejected
    assert passed.option == "precision bfloat16"
    assert "a cache of 256 tokens takes" in passed.reason
    with pytest.raises(DoesNotFitError, match="a cache of 256 tokens in int8 takes"):
        budget(FACTS, large, between(1), RUNS)


def test_floats_that_are_asked_for_are_never_made_codes() -> None:
    large = DeviceFacts("cpu", 4096 * MIB, TORCH_TABLE)
    asked = replace(between(), cache_precision="float")
    with pytest.raises(DoesNotFitError) as caught:
        budget(FACTS, large, asked, RUNS)
    assert "kvCache.precision int8" in caught.value.ways
    wide = budget(FACTS, large, replace(asked, cache_bytes=2 * asked.cache_bytes), RUNS)
    assert wide.cache_precision == "float"
    assert cache_chosen(FACTS, "float", wide.cache_precision) is None


def test_keys_with_biases_are_held_in_codes_only_where_these_are_named() -> None:
    large = DeviceFacts("cpu", 4096 * MIB, TORCH_TABLE)
    with pytest.raises(DoesNotFitError) as caught:
        budget(BIASED, large, between(), RUNS)
    assert "kvCache.precision int8" in caught.value.ways
    assert budget(BIASED, large, replace(between(), cache_precision="int8"), RUNS).cache_precision == "int8"


def test_a_cache_that_auto_has_chosen_is_said_and_one_that_was_named_is_not() -> None:
    for held in ("float", "int8", "int4"):
        assert cache_chosen(FACTS, held, held) is None
    assert "auto takes int8" in str(cache_chosen(FACTS, "auto", "int8"))


def test_a_measured_cache_is_taken_by_what_it_cost() -> None:
    large = DeviceFacts("cpu", 4096 * MIB, TORCH_TABLE)
    good = replace(BIASED, measured_caches={"int8": 0.001, "int4": 0.015})
    assert budget(good, large, between(), RUNS).cache_precision == "int8"
    assert "Measured on this checkpoint: 0.1 %" in str(cache_chosen(good, "auto", "int8"))
    # Less than int8 takes for a request, and enough for int4.
    scarce = between(16 * block_bytes(FACTS, 16, "bfloat16", "int4"))
    assert budget(good, large, scarce, RUNS).cache_precision == "int4"
    for facts in (FACTS, replace(FACTS, measured_caches={"int8": 0.001, "int4": 0.021})):
        with pytest.raises(DoesNotFitError):
            budget(facts, large, scarce, RUNS)


def test_a_cache_that_was_measured_bad_is_passed_over_with_its_figure() -> None:
    large = DeviceFacts("cpu", 4096 * MIB, TORCH_TABLE)
    bad = replace(FACTS, measured_caches={"int8": 0.031, "int4": 0.4})
    with pytest.raises(DoesNotFitError):
        budget(bad, large, between(), RUNS)
    (one, because), (other, too) = auto_caches(bad)
    assert (one, other) == ("int8", "int4")
    assert "3.1 % more perplexity than with a cache of floats" in str(because)
    assert "40 % more" in str(too)
