"""Caches that are known to cost quality are named, with the model that they cost it."""

from dataclasses import replace

import pytest

from plimsoll.api.cache_loss import cache_loss, measured_caches, recommended_cache
from plimsoll.api.facts import facts_from_config
from plimsoll.api.precision import HeldCache
from tests.support.miniature import CONFIG

PLAIN = facts_from_config(CONFIG)
BIASED = facts_from_config({**CONFIG, "attention_bias": True})


def test_only_caches_that_lose_are_warned_of() -> None:
    assert cache_loss(PLAIN, "float") is cache_loss(BIASED, "float") is cache_loss(PLAIN, "int8") is None
    assert "Use int8" in (cache_loss(PLAIN, "int4") or "")
    for held in ("int8", "int4"):
        assert f"have biases, which may make a few channels large: a cache in {held}" in (
            cache_loss(BIASED, held) or ""
        )


@pytest.mark.parametrize(
    ("held", "int8", "int4", "said"),
    [
        ("int8", 59.9, 30.0, None), ("int8", 60.1, 0.0, "60.1 times the spread of the keys, and beyond 60 it may cost"),
        ("int4", 0.0, 9.9, "up to 1 %"), ("int4", 59.9, 10.1, "Use float or int8, or measure"),
        ("int4", 60.1, 10.1, "Use float, or measure"), ("float", 1e6, 1e6, None),
    ],
)  # fmt: skip
def test_biases_are_warned_of_where_they_are_too_wide_for_the_cache(
    held: HeldCache, int8: float, int4: float, said: str | None
) -> None:
    found = cache_loss(BIASED, held, {"int8": int8, "int4": int4})
    assert found is None if said is None else said in (found or "")


def test_a_measured_loss_counts_more_than_wide_biases() -> None:
    measured = replace(BIASED, measured_caches={"int8": 0.0004})
    assert cache_loss(measured, "int8", {"int8": 1e6, "int4": 1e6}) is None


def test_what_was_measured_on_the_checkpoint_counts_more_than_what_is_known_of_others() -> None:
    measured = replace(BIASED, measured_caches={"int8": 0.0004, "int4": 0.0731})
    assert cache_loss(measured, "int8") is None
    found = cache_loss(measured, "int4") or ""
    assert "measured on this checkpoint, 7.31 % more perplexity" in found
    assert "Use int8" in found
    assert cache_loss(replace(PLAIN, measured_caches={"int4": 0.0199}), "int4") is None


@pytest.mark.parametrize(
    ("increases", "recommended"),
    [
        ({"int8": 0.001, "int4": 0.02}, "int4"), ({"int8": 0.001, "int4": 0.0201}, "int8"),
        ({"int8": 0.03, "int4": 1e18}, "float"), ({}, "float"), ({"int8": -0.001}, "int8"),
    ],
)  # fmt: skip
def test_the_fewest_bytes_that_lose_little_are_recommended(increases: dict[str, float], recommended: str) -> None:
    assert recommended_cache(increases) == recommended


def test_entries_of_a_manifest_that_are_no_measurements_are_left_out() -> None:
    entries = [
        {"precision": "int8", "increase": 0.25}, {"precision": "int2", "increase": 0.1}, {"precision": ["int4"]}, 7,
        {"precision": "int4", "increase": float("nan")}, {"precision": "int4", "increase": "0.1"},
    ]  # fmt: skip
    assert measured_caches({"caches": entries}) == {"int8": 0.25}
    assert measured_caches({}) == measured_caches({"caches": None}) == measured_caches({"caches": {}}) == {}
