"""Caches that are known to cost quality are named, with the model that they cost it."""

from plimsoll.api.cache_loss import cache_loss
from plimsoll.api.facts import facts_from_config
from tests.support.miniature import CONFIG

PLAIN = facts_from_config(CONFIG)
BIASED = facts_from_config({**CONFIG, "attention_bias": True})


def test_only_caches_that_lose_are_warned_of() -> None:
    assert cache_loss(PLAIN, "auto") is cache_loss(BIASED, "auto") is cache_loss(PLAIN, "int8") is None
    assert "Use int8" in (cache_loss(PLAIN, "int4") or "")
    for held in ("int8", "int4"):
        assert f"have biases, which may make a few channels large: a cache in {held}" in (
            cache_loss(BIASED, held) or ""
        )
