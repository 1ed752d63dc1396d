"""What a cache of codes costs a model, as its checkpoint's own report measured it or as it is known. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

from plimsoll.api.model import ModelFacts
from plimsoll.api.precision import CachePrecision, HeldCache

AUTO_CACHE: HeldCache = "int8"
"""What `kvCache.precision: auto` takes first where floats hold fewer tokens than are asked for."""
MOST_INCREASE = 0.02
"""Of perplexity: a cache that was measured to cost more is not recommended, not taken by `auto`, and warned of."""
MOST_BIAS: Mapping[HeldCache, float] = {"int8": 60, "int4": 10}
"""Range of key biases over the spread of keys, as `key_bias_ranges` gives it, up to which a cache costs the demo model
with such biases at most about `MOST_INCREASE`: docs/cache-precision.md has the measurement."""
MOST_MEASURED = 1e18
"""What stands for an increase that is no finite number."""
CACHES_BY_BYTES: tuple[HeldCache, ...] = ("int4", "int8")
"""Of codes, the fewest bytes first."""


def recommended_cache(increases: Mapping[str, float]) -> HeldCache:
    """The cache of the fewest bytes that costs at most `MOST_INCREASE`; float where none does.

    Args:
        increases: of perplexity, by precision: 0.02 is 2 % more than with a cache of floats.
    """
    return next((one for one in CACHES_BY_BYTES if increases.get(one, MOST_INCREASE + 1) <= MOST_INCREASE), "float")


def recommendation(cache: HeldCache) -> str:
    """What `recommended_cache` means by its answer, in words."""
    if cache == "float":
        return f"each cache of codes costs more than {MOST_INCREASE:.0%} of perplexity"
    return f"the fewest bytes that cost at most {MOST_INCREASE:.0%} of perplexity"


def measured_caches(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """`ModelFacts.measured_caches` of what a manifest or an inspection has; entries of another form are left out.

    Args:
        evaluation: `caches` holds objects with `precision` and `increase`.
    """
    found: dict[str, float] = {}
    listed = evaluation.get("caches")
    for one in listed if isinstance(listed, list) else []:
        precision, increase = (one.get("precision"), one.get("increase")) if isinstance(one, dict) else (None, None)
        if precision in CACHES_BY_BYTES and isinstance(increase, int | float) and -1 <= increase <= MOST_MEASURED:
            found[precision] = float(increase)
    return found


def auto_caches(facts: ModelFacts) -> Iterator[tuple[HeldCache, str | None]]:
    """What `auto` looks at after floats, the least degraded first, and why it takes it not; None where it may.

    int4 is only looked at where it was measured on this checkpoint.
    """
    for one in reversed(CACHES_BY_BYTES):
        measured = facts.measured_caches.get(one)
        if measured is not None:
            bad = measured > MOST_INCREASE
            yield one, f"measured: {_more(measured)}, and {MOST_INCREASE:.0%} is the most" if bad else None
        elif one == AUTO_CACHE:
            yield one, _biased(facts)


def _biased(facts: ModelFacts) -> str | None:
    if not any(spec.qkv_bias for spec in facts.layers):
        return None
    return f"keys have biases, and such a cache may lose quality; name {AUTO_CACHE} to accept that"


def _more(increase: float) -> str:
    return f"{100 * increase:.3g} % more perplexity than with a cache of floats"


def cache_chosen(facts: ModelFacts, asked: CachePrecision, found: HeldCache) -> str | None:
    """What to say where `auto` has taken a cache of codes; None where it has not."""
    if asked != "auto" or found == "float":
        return None
    measured = facts.measured_caches.get(found)
    if measured is None:
        loss = "Perplexity of the demo model grows by less than 0.1 %"
    else:
        loss = f"Measured on this checkpoint: {_more(measured)}"
    return f"auto takes {found} for the cache: with floats it holds fewer tokens than are asked for. {loss}"


def cache_loss(facts: ModelFacts, cache: HeldCache, biases: Mapping[HeldCache, float] | None = None) -> str | None:
    """What a person should know of the quality of `cache` for this model; None where nothing is known to be lost.

    Key biases may make a few channels much larger than the others (KIVI, arXiv 2402.02750, shows such channels). The
    codes of all channels are coarse then. Qwen2 has such biases. What the checkpoint's report measured counts more.

    Args:
        biases: `checkpoint.key_biases.key_bias_ranges`; None where it is not known.
    """
    measured = facts.measured_caches.get(cache)
    if measured is not None:
        if measured <= MOST_INCREASE:
            return None
        better = recommended_cache(facts.measured_caches)
        return f"a cache in {cache} loses quality: measured on this checkpoint, {_more(measured)}. Use {better}"
    if cache == "float":
        return None
    if biases is not None and biases[cache] > MOST_BIAS[cache]:
        other = " or int8" if cache == "int4" and biases["int8"] <= MOST_BIAS["int8"] else ""
        return (
            f"a cache in {cache} may lose quality: the range of the key biases is {biases[cache]:.3g} times the spread "
            f"of the keys, and beyond {MOST_BIAS[cache]:g} it may cost more than {MOST_INCREASE:.0%} of perplexity. "
            f"Use float{other}, or measure the loss with plimsoll quantize"
        )
    if biases is None and any(spec.qkv_bias for spec in facts.layers):
        return (
            f"the keys of {facts.architecture} have biases, which may make a few channels large: a cache in {cache} "
            "may lose quality. Compare answers with those of a cache of floats"
        )
    if cache == "int8":
        return None
    return (
        "a cache in int4 loses quality: perplexity of the demo model grows by up to 1 %, with int8 by less than 0.1 %. "
        "Use int8 where it holds enough"
    )
