"""What a cache of codes is known to cost a model. Pure."""

from plimsoll.api.model import ModelFacts
from plimsoll.api.precision import CachePrecision

AUTO_CACHE: CachePrecision = "int8"
"""What `kvCache.precision: auto` takes where floats hold fewer tokens than are asked for. int4 loses quality: it has to
be named."""


def coarse_cache(facts: ModelFacts) -> str | None:
    """Why `auto` takes no cache of codes for this model; None where it may."""
    if not any(spec.qkv_bias for spec in facts.layers):
        return None
    return f"keys have biases, and such a cache may lose quality; name {AUTO_CACHE} to accept that"


def cache_chosen(asked: CachePrecision, found: CachePrecision) -> str | None:
    """What to say where `auto` has taken a cache of codes; None where it has not."""
    if asked != "auto" or found == "auto":
        return None
    return (
        f"kvCache.precision auto takes {found}: with floats the cache holds fewer tokens than are asked for. "
        "Perplexity of the demo model grows by less than 0.1 %"
    )


def cache_loss(facts: ModelFacts, cache: CachePrecision) -> str | None:
    """What a person should know of the quality of `cache` for this model; None where nothing is known to be lost.

    Key biases may make a few channels much larger than the others (KIVI, arXiv 2402.02750, shows such channels). The
    codes of all channels are coarse then. Qwen2 has such biases.
    """
    biased = any(spec.qkv_bias for spec in facts.layers)
    if cache == "auto" or (cache == "int8" and not biased):
        return None
    if biased:
        return (
            f"the keys of {facts.architecture} have biases, which may make a few channels large: a cache in {cache} "
            "may lose quality. Compare answers with those of kvCache.precision auto"
        )
    return (
        "a cache in int4 loses quality: perplexity of the demo model grows by 4 %, with int8 by less than 0.1 %. Use "
        "int8 where it holds enough"
    )
