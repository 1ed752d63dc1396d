"""How far the positions of a model reach, and `context.rope` in place of what its checkpoint says."""

from typing import cast

from plimsoll.api.errors import SpecError
from plimsoll.api.model import ModelFacts, RopeFacts, RopeKind
from plimsoll.api.rope_config import ROPE_NEEDS


def override_rope(facts: ModelFacts, kind: str | None, factor: float | None) -> RopeFacts:
    """The checkpoint's rotary embedding, or with `context.rope` in its place.

    The trained length of what is stretched is the checkpoint's original one; frequencies bounds and the like take the
    values of the papers. Raises SpecError for an unknown kind, a missing factor or a factor below 1.
    """
    if kind is None:
        if factor is not None:
            raise SpecError("a factor needs a type", field="context.rope.type", fix="Set it, e.g. to dynamic")
        return facts.rope
    # LongRoPE's factors come with a checkpoint; a user has none to give.
    known = sorted(set(ROPE_NEEDS) - {"longrope"})
    if kind not in known:
        raise SpecError("unknown kind of RoPE", field="context.rope.type", value=kind, fix=f"One of {known}")
    if kind == "default":
        return RopeFacts(theta=facts.rope.theta, share=facts.rope.share)
    if factor is None or not factor >= 1:
        raise SpecError("must be a number, 1 or more", field="context.rope.factor", value=factor, fix="Set e.g. 2.0")
    params: dict[str, float] = {"factor": factor, "original_max_position_embeddings": trained_length(facts)}
    if kind == "llama3":
        params |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return RopeFacts(facts.rope.theta, cast(RopeKind, kind), params, facts.rope.share)


def trained_length(facts: ModelFacts) -> int:
    """Positions the rotary embedding saw before any scaling."""
    return int(facts.rope.params.get("original_max_position_embeddings", facts.max_position))


def reachable_length(facts: ModelFacts, rope: RopeFacts) -> int:
    """Longest sequence whose positions the model was trained for, or is stretched to by `rope`."""
    if rope.kind == "default" or (rope.kind in ("llama3", "longrope") and rope is facts.rope):
        # Llama 3 and LongRoPE count `max_position_embeddings` after scaling; the others may count either way.
        return facts.max_position
    return max(facts.max_position, int(trained_length(facts) * rope.params.get("factor", 1.0)))


def default_length(facts: ModelFacts, rope: RopeFacts) -> int:
    """Longest sequence if the spec names none: all that `rope` reaches, unless it is the checkpoint's own and dynamic.

    Dynamic scaling changes every position once the length exceeds the trained one, short prompts included; a checkpoint
    that merely allows it is served as trained.
    """
    if rope is facts.rope and rope.kind == "dynamic":
        return facts.max_position
    return reachable_length(facts, rope)


def check_length(
    facts: ModelFacts,
    rope: RopeFacts,
    wanted: int | None,
    field: str = "spec.context.maxLength",
    stretch: str = "spec.context.rope type dynamic, factor",
) -> None:
    """Raises SpecError where `wanted` tokens are more than the positions of the model reach.

    Args:
        stretch: what stretches the positions, in front of the factor, in the words of `field`.
    """
    reach = reachable_length(facts, rope)
    if wanted is not None and wanted > reach:
        factor = -(-10 * wanted // trained_length(facts)) / 10
        raise SpecError(
            f"the positions of this model reach {reach}", field=field, value=wanted,
            fix=f"Lower it, or stretch them with {stretch} {factor:g}",
        )  # fmt: skip
