"""Limits on what quantizing may cost: how they are written, and when a checkpoint is past them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.api.errors import SpecError
from plimsoll.api.gate import Limits, gate, parse_divergence, parse_increase

perplexities = st.floats(1.0, 1e6)
shares = st.floats(0.0, 5.0)
divergences = st.floats(0.0, 20.0)


@given(perplexities, perplexities, divergences)
def test_without_limits_everything_passes(before: float, after: float, kl: float) -> None:
    assert gate(before, after, kl, Limits()) == []
    assert not Limits().any


@given(perplexities, shares, divergences, st.floats(0.001, 3.0))
def test_each_limit_is_held_by_itself(before: float, share: float, kl: float, beyond: float) -> None:
    limits = Limits(share, kl)
    assert limits.any
    assert gate(before, before * (1 + share), kl, limits) == []
    assert gate(before, before, 0.0, limits) == []
    too_much, too_far = before * (1 + share) * (1 + beyond), kl + beyond
    assert len(gate(before, too_much, kl, limits)) == 1
    assert len(gate(before, before, too_far, limits)) == 1
    assert len(gate(before, too_much, too_far, limits)) == 2


@given(perplexities, perplexities, divergences, shares, divergences, shares, divergences)
def test_tightening_a_limit_never_lets_more_through(
    before: float, after: float, kl: float, share: float, most: float, less: float, lower: float
) -> None:
    loose, tight = Limits(share, most), Limits(min(share, less), min(most, lower))
    assert len(gate(before, after, kl, loose)) <= len(gate(before, after, kl, tight))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_passes_no_limit(bad: float) -> None:
    assert gate(10.0, bad, 0.0, Limits(perplexity_increase=100.0))
    assert gate(bad, 10.0, 0.0, Limits(perplexity_increase=100.0))
    assert gate(10.0, 10.0, bad, Limits(kl_divergence=100.0))


def test_a_reason_says_what_was_found_and_what_is_allowed() -> None:
    (rise, distance) = gate(11.0, 13.2, 0.25, Limits(0.02, 0.1))
    assert rise == "perplexity rose by 20.00%, from 11 to 13.2; 2.00% is allowed"
    assert distance == "the mean KL divergence is 0.25 nats a token; 0.1 is allowed"


@pytest.mark.parametrize(
    ("text", "share"),
    [("2%", 0.02), ("0.02", 0.02), (" 2.5 % ", 0.025), ("150%", 1.5), (0.02, 0.02), ("1", 1.0), ("0", 0.0), (1, 1.0),
     ("2e-3", 0.002), (".5%", 0.005), (1e-05, 1e-05)],
)  # fmt: skip
def test_an_increase_is_per_cent_or_a_share(text: str | float, share: float) -> None:
    assert parse_increase(text) == pytest.approx(share)


@pytest.mark.parametrize(
    "text", ["2", "1.01", "-1%", "nan", "inf", "", "%", "two", "1,5%", "1%%", True, "9" * 40, "٢%"]
)
def test_what_is_no_increase_is_refused_by_its_field(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_increase(text, "--max-perplexity-increase")
    assert caught.value.field == "--max-perplexity-increase"


def test_a_number_above_one_asks_which_was_meant() -> None:
    with pytest.raises(SpecError, match=r"2% if per cent are meant, 200% if not"):
        parse_increase("2")


@pytest.mark.parametrize("text", ["5%", "-0.1", "nan", "lots"])
def test_a_divergence_is_a_plain_number(text: str) -> None:
    assert parse_divergence("0.1") == 0.1
    with pytest.raises(SpecError):
        parse_divergence(text)
