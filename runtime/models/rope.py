"""Rotary position embedding (Su et al. 2021), and the ways to stretch it past the trained length.

Everything here is a function of the position and of how the engine was set up, never of a request's length or of how
its prompt was cut. Otherwise a cached key and a fresh one would disagree.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from plimsoll.api.model import ModelFacts, RopeFacts

TABLE_ROWS = 4096
"""Positions whose angles are computed at once."""


def rope_table(
    facts: ModelFacts, rope: RopeFacts, max_model_len: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """(cos, sin), each float32 [max_model_len, R / 2] for R rotated dimensions of a head: R * 4 bytes a position.

    `dynamic` takes its base for `max_model_len` where that exceeds the trained length, else the plain base. So it
    agrees with transformers for every prompt when nothing is stretched, and for one of `max_model_len` tokens when it
    is: transformers takes the length of the moment, which keys already cached cannot follow.
    """
    inv_freq, magnitude = inverse_frequencies(facts, rope, max_model_len)
    cos = torch.empty(max_model_len, rope.rotated(facts.head_dim) // 2)
    sin = torch.empty_like(cos)
    for start in range(0, max_model_len, TABLE_ROWS):
        stop = min(start + TABLE_ROWS, max_model_len)
        # float32 angles, as every implementation has trained and served them; wider ones would drift from theirs.
        angles = torch.arange(start, stop, dtype=torch.float32).unsqueeze(1) * inv_freq
        torch.mul(angles.cos(), magnitude, out=cos[start:stop])
        torch.mul(angles.sin(), magnitude, out=sin[start:stop])
    return cos.to(device), sin.to(device)


def with_rope(facts: ModelFacts, rope: RopeFacts) -> ModelFacts:
    """`facts` with `rope` in place of the model's own. Layers with another keep theirs."""
    layers = tuple(replace(spec, rope=rope) if spec.rope == facts.rope else spec for spec in facts.layers)
    return replace(facts, rope=rope, layers=layers)


def inverse_frequencies(facts: ModelFacts, rope: RopeFacts, max_model_len: int) -> tuple[Tensor, float]:
    """(float32 [R / 2] radians a position, factor on cos and sin) for the kind of `rope`."""
    return FREQUENCIES[rope.kind](rope, facts, max_model_len)


def _plain(theta: float, head_dim: int) -> Tensor:
    return 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))


def _default(rope: RopeFacts, facts: ModelFacts, max_model_len: int) -> tuple[Tensor, float]:
    return _plain(rope.theta, rope.rotated(facts.head_dim)), 1.0


def _linear(rope: RopeFacts, facts: ModelFacts, max_model_len: int) -> tuple[Tensor, float]:
    """Position interpolation (Chen et al. 2023)."""
    return _plain(rope.theta, rope.rotated(facts.head_dim)) / rope.params["factor"], 1.0


def _dynamic(rope: RopeFacts, facts: ModelFacts, max_model_len: int) -> tuple[Tensor, float]:
    """NTK-aware base, grown with the length in excess (bloc97, emozilla 2023)."""
    factor, dim = rope.params["factor"], rope.rotated(facts.head_dim)
    # transformers measures the excess against `max_position_embeddings`, and ignores the original length.
    stretch = factor * max(max_model_len, facts.max_position) / facts.max_position - (factor - 1)
    return _plain(rope.theta * stretch ** (dim / (dim - 2)), dim), 1.0


def _yarn(rope: RopeFacts, facts: ModelFacts, max_model_len: int) -> tuple[Tensor, float]:
    """YaRN (Peng et al. 2023): slow dimensions interpolated, fast ones kept, a ramp between, and warmer attention."""
    params, dim = rope.params, rope.rotated(facts.head_dim)
    original = params.get("original_max_position_embeddings", facts.max_position)
    factor = params.get("factor") or facts.max_position / original

    def dimension(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(params.get("beta_fast") or 32), dimension(params.get("beta_slow") or 1)
    if params.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = (high - low) or 0.001
    kept = 1 - ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    plain = _plain(rope.theta, dim)
    return plain / factor * (1 - kept) + plain * kept, _yarn_magnitude(params, factor)


def _yarn_magnitude(params: Mapping[str, float], factor: float) -> float:
    def warmth(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    given = params.get("attention_factor")
    if given is not None:
        return given
    if params.get("mscale") and params.get("mscale_all_dim"):
        return warmth(params["mscale"]) / warmth(params["mscale_all_dim"])
    return warmth(1.0)


def _llama3(rope: RopeFacts, facts: ModelFacts, max_model_len: int) -> tuple[Tensor, float]:
    """Llama 3.1: wavelengths beyond the trained length interpolated, short ones kept, smooth between."""
    params, plain = rope.params, _plain(rope.theta, rope.rotated(facts.head_dim))
    factor, low, high = params["factor"], params["low_freq_factor"], params["high_freq_factor"]
    turns = params.get("original_max_position_embeddings", facts.max_position) / (2 * math.pi / plain)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * plain / factor + kept * plain, 1.0


def _longrope(rope: RopeFacts, facts: ModelFacts, max_model_len: int) -> tuple[Tensor, float]:
    """LongRoPE (Ding et al. 2024): a divisor for each frequency, of one set for long sequences and one for short.

    The set follows from the longest sequence that may come, as the base of `dynamic` does.
    """
    original = rope.params["original_max_position_embeddings"]
    factors = rope.long_factors if max_model_len > original else rope.short_factors
    plain, magnitude = _plain(rope.theta, rope.rotated(facts.head_dim)), rope.params.get("attention_factor")
    if magnitude is None:
        stretch = rope.params.get("factor", facts.max_position / original)
        magnitude = 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))
    return plain / torch.tensor(factors), magnitude


FREQUENCIES: Mapping[str, Callable[[RopeFacts, ModelFacts, int], tuple[Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}
