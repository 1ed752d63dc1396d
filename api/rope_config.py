"""The rotary embedding that a `config.json` describes, in the words of transformers 4 or 5, as transformers 5 reads it.

https://github.com/huggingface/transformers/blob/main/src/transformers/modeling_rope_utils.py
"""

from collections.abc import Mapping
from typing import Any

from plimsoll.api.config_values import LARGEST, flag, integer, is_number, number, short
from plimsoll.api.errors import CheckpointError
from plimsoll.api.model import RopeFacts

#: What each kind of scaling must say, under its Hugging Face names.
ROPE_NEEDS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": (),
}
#: Numbers that a kind may say or that it ignores, as transformers does.
_NUMBERS = (
    "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
    "mscale_all_dim", "low_freq_factor", "high_freq_factor",
)  # fmt: skip
#: Kinds that measure from the trained length, which may stand outside the scaling.
_FROM_ORIGINAL = ("yarn", "llama3", "longrope")
#: Keys that are neither numbers nor read here, and change nothing.
_HARMLESS = (
    "rope_type",
    "type",
    "rope_theta",
    "finetuned",
    "truncate",
    "partial_rotary_factor",
    "max_position_embeddings",
)
#: Keys of scalings that the engine does not run. The name of the scaling does not matter.
_REFUSED = ("mrope_section", "mrope_interleaved", "llama_4_scaling_beta", "alpha")

#: LongRoPE's divisors of the frequencies.
_FACTORS = ("long_factor", "short_factor")
#: What Phi-3 called LongRoPE before it had that name.
_LONGROPE = ("su", "yarn")

_ORIGINAL = "original_max_position_embeddings"
_PARTIAL = "partial_rotary_factor"


def rope_from_config(
    config: Mapping[str, Any], max_position: int, *, head_dim: int | None = None, original: int | None = None
) -> RopeFacts:
    """The rotary embedding of `config`. `max_position` is its `max_position_embeddings`.

    Args:
        head_dim: of a family that may rotate a part of each head, and knows LongRoPE; None refuses both.
        original: what such a family takes for `original_max_position_embeddings` where it is absent.

    `rope_scaling` replaces `rope_parameters` where both are there. `original_max_position_embeddings` at the top level
    comes before the one inside.

    Raises:
        CheckpointError: a kind, a key or a value that is not run, by its name.
    """
    name, scaling = _scaling(config)
    theta = number(scaling if scaling.get("rope_theta") is not None else config, "rope_theta", 10000.0)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind is None:
        kind = "default"
    known = ROPE_NEEDS if head_dim is None else (*ROPE_NEEDS, *_LONGROPE)
    if not isinstance(kind, str) or kind not in known or (kind == "longrope" and head_dim is None):
        raise CheckpointError(
            "this scaling of positions is not run", field=f"{name}.rope_type", value=short(kind),
            fix=f"One of {', '.join(one for one in ROPE_NEEDS if one != 'longrope' or head_dim is not None)}",
        )  # fmt: skip
    if head_dim is not None and kind in _LONGROPE:
        kind = "longrope"
    if head_dim is None or kind != "longrope":
        _refuse_factors(name, kind, scaling)
    share = 1.0
    if head_dim is None:
        _refuse_parts(config, name, scaling)
    else:
        share = _share(config, name, scaling, head_dim)
    params = _numbers(name, scaling)
    if kind in _FROM_ORIGINAL:
        if config.get(_ORIGINAL) is not None:
            params[_ORIGINAL] = float(integer(config, _ORIGINAL))
        elif kind == "llama3":
            params.setdefault(_ORIGINAL, float(max_position))
        elif kind == "longrope":
            params.setdefault(_ORIGINAL, float(original or max_position))
            if params[_ORIGINAL] < 2:
                raise CheckpointError("must be 2 or more", field=_ORIGINAL, value=params[_ORIGINAL])
    if kind == "yarn" and scaling.get("truncate") is not None:
        params["truncate"] = float(flag({f"{name}.truncate": scaling["truncate"]}, f"{name}.truncate"))
    for key in ROPE_NEEDS[kind]:
        if key not in params:
            # YaRN's factor may be left to the ratio of the lengths, as transformers did in version 4.
            if kind == "yarn" and _ORIGINAL in params:
                params[key] = max_position / params[_ORIGINAL]
                continue
            raise CheckpointError(
                f"{kind} scaling needs a number here", field=f"{name}.{key}", value=short(scaling.get(key))
            )
    if kind == "llama3" and not params["high_freq_factor"] > params["low_freq_factor"]:
        raise CheckpointError(
            "must be above low_freq_factor", field=f"{name}.high_freq_factor", value=params["high_freq_factor"]
        )
    factors: list[tuple[float, ...]] = [(), ()]
    if kind == "longrope":
        factors = [_factors(name, scaling, key, int((head_dim or 0) * share) // 2) for key in _FACTORS]
    return RopeFacts(theta, kind, params if kind != "default" else {}, share, *factors)  # type: ignore[arg-type]


def lost_theta(config: Mapping[str, Any]) -> float | None:
    """The `rope_theta` that `rope_parameters` has and `rope_scaling`, which replaces it, does not; None without one."""
    replaced, chosen = config.get("rope_parameters"), _scaling(config)[1]
    if chosen is replaced or not isinstance(replaced, Mapping) or config.get("rope_theta") is not None:
        return None
    theta = replaced.get("rope_theta")
    return theta if is_number(theta) and chosen.get("rope_theta") is None and theta != 10000.0 else None


def _scaling(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The key that describes the scaling, and its object."""
    # transformers takes `rope_scaling` where it is there and not empty: model cards tell users to add it.
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    given = config.get(name)
    if given is not None and not isinstance(given, Mapping):
        raise CheckpointError("must be an object", field=name, value=short(given))
    return name, given or {}


def _share(config: Mapping[str, Any], name: str, scaling: Mapping[str, Any], head_dim: int) -> float:
    """The part of each head that is rotated: an even number of dimensions."""
    where, values = (f"{name}.", scaling) if scaling.get(_PARTIAL) is not None else ("", config)
    share = values.get(_PARTIAL)
    if share is None:
        return 1.0
    if not is_number(share) or not 0 < share <= 1 or int(head_dim * share) < 2 or int(head_dim * share) % 2:
        raise CheckpointError(
            f"must be above 0 and at most 1, and leave an even number of the {head_dim} dimensions of a head",
            field=f"{where}{_PARTIAL}", value=short(share),
        )  # fmt: skip
    return float(share)


def _factors(name: str, scaling: Mapping[str, Any], key: str, pairs: int) -> tuple[float, ...]:
    value = scaling.get(key)
    if (
        not isinstance(value, list | tuple)
        or len(value) != pairs
        or not all(is_number(one) and 0 < one <= LARGEST for one in value)
    ):
        raise CheckpointError(f"must be {pairs} numbers above 0", field=f"{name}.{key}", value=short(value))
    return tuple(float(one) for one in value)


def _refuse_factors(name: str, kind: str, scaling: Mapping[str, Any]) -> None:
    for key in _FACTORS:
        if scaling.get(key) is not None:
            raise CheckpointError(
                f"{kind} scaling takes no such factors here", field=f"{name}.{key}", value=short(scaling[key])
            )


def _refuse_parts(config: Mapping[str, Any], name: str, scaling: Mapping[str, Any]) -> None:
    for where, values in ((f"{name}.", scaling), ("", config)):
        share = values.get(_PARTIAL)
        if share is not None and (not is_number(share) or share != 1):
            raise CheckpointError("only whole heads are rotated", field=f"{where}{_PARTIAL}", value=short(share))
    for key, value in scaling.items():
        if isinstance(value, Mapping):
            raise CheckpointError(
                "positions that differ between kinds of layers are not run", field=f"{name}.{key}", value=short(value)
            )
        if key in _REFUSED and value is not None and value is not False:
            raise CheckpointError("this scaling of positions is not run", field=f"{name}.{key}", value=short(value))


def _numbers(name: str, scaling: Mapping[str, Any]) -> dict[str, float]:
    params: dict[str, float] = {}
    for key in _NUMBERS:
        value = scaling.get(key)
        if value is None:
            continue
        if not is_number(value):
            raise CheckpointError("must be a number", field=f"{name}.{key}", value=short(value))
        # 0 stands for the default of these, as in transformers.
        if value < 0 or (value == 0 and key not in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")):
            raise CheckpointError("must be above 0", field=f"{name}.{key}", value=value)
        if value > LARGEST:
            raise CheckpointError(f"must be at most {LARGEST}", field=f"{name}.{key}", value=short(value))
        if key == _ORIGINAL and value != int(value):
            raise CheckpointError("must be a whole number", field=f"{name}.{key}", value=value)
        params[key] = float(value)
    return params


def unknown_rope_keys(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys of the scaling that are not read and not known, with the key of the scaling before them."""
    name, scaling = _scaling(config)
    known = (*_NUMBERS, *_HARMLESS, *_REFUSED, *_FACTORS)
    found = []
    for key, value in scaling.items():
        # Families whose layers differ have an object for each kind of layer.
        inner = {f"{key}.{one}": part for one, part in value.items()} if isinstance(value, Mapping) else {key: value}
        found += [one for one, part in inner.items() if part is not None and one.rpartition(".")[2] not in known]
    return tuple(f"{name}.{key}" for key in found)
