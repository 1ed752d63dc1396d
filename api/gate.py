"""What quantizing may cost at most, and whether it stayed below. Pure."""

import math
import re
from dataclasses import dataclass

from plimsoll.api.errors import SpecError

_SHARE = re.compile(r"\s*(\d{1,6}(?:\.\d{0,9})?|\.\d{1,9})(?:[eE]([+-]?\d{1,2}))?\s*(%?)\s*", re.ASCII)


@dataclass(frozen=True)
class Limits:
    """None sets no limit.

    Attributes:
        perplexity_increase: of the perplexity before: 0.02 lets it grow by 2 %.
        kl_divergence: mean over the held-out tokens, in nats a token.
    """

    perplexity_increase: float | None = None
    kl_divergence: float | None = None

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return self.perplexity_increase is not None or self.kl_divergence is not None


def parse_increase(text: str | float, field: str = "spec.evaluation.maxPerplexityIncrease") -> float:
    """`2%` or `0.02` as 0.02.

    Raises:
        SpecError: it is neither, or a number above 1 without the sign: `2` would let perplexity treble.
    """
    value, percent = _number(text, field, "a share such as 2% or 0.02")
    if not percent and value > 1:
        raise SpecError(
            "is above 1, which is a growth of more than 100 %", field=field, value=text,
            fix=f"Write {value:g}% if per cent are meant, {value * 100:g}% if not",
        )  # fmt: skip
    return value / 100 if percent else value


def parse_divergence(text: str | float, field: str = "spec.evaluation.maxKLDivergence") -> float:
    """Nats a token. Raises SpecError unless it is a number of 0 or more."""
    value, percent = _number(text, field, "a number of nats a token, such as 0.1")
    if percent:
        raise SpecError("is no share", field=field, value=text, fix="Write nats a token, such as 0.1")
    return value


def parse_limits(increase: str | None, divergence: str | None) -> Limits:
    """What the options of `quantize` and `eval` say. Raises SpecError."""
    return Limits(
        None if increase is None else parse_increase(increase, "--max-perplexity-increase"),
        None if divergence is None else parse_divergence(divergence, "--max-kl-divergence"),
    )


def _number(text: str | float, field: str, wanted: str) -> tuple[float, bool]:
    match = None if isinstance(text, bool) else _SHARE.fullmatch(str(text))
    if match is None:
        raise SpecError(f"must be {wanted}", field=field, value=text)
    return float(f"{match[1]}e{match[2] or 0}"), bool(match[3])


def gate(before: float, after: float, kl_divergence: float, limits: Limits) -> list[str]:
    """Why a checkpoint is refused, a sentence for each limit it passed; none where it stayed within.

    Args:
        before: perplexity of what it was made of.
        after: its own, on the same tokens.
        kl_divergence: mean, nats a token.

    A figure that is no finite number is past any limit.
    """
    reasons = []
    allowed = limits.perplexity_increase
    if allowed is not None:
        if not (math.isfinite(before) and math.isfinite(after) and before > 0):
            reasons.append(f"perplexity is {after:g} after {before:g}: no number that a limit can be held against")
        elif after > before * (1 + allowed):
            rise = f"{after / before - 1:.2%}, from {before:.4g} to {after:.4g}"
            reasons.append(f"perplexity rose by {rise}; {allowed:.2%} is allowed")
    most = limits.kl_divergence
    if most is not None and not kl_divergence <= most:
        reasons.append(f"the mean KL divergence is {kl_divergence:.4g} nats a token; {most:g} is allowed")
    return reasons
