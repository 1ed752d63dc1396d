"""The `generation_config.json` of an output: what the source's says, as far as a reader of the output can use it."""

from collections.abc import Mapping
from typing import Any

from plimsoll.checkpoint.checkpoint import token_ids
from plimsoll.runtime.sampling_defaults import sampling_defaults

#: Values that transformers refuses to save beside a `do_sample` that is not true.
_SAMPLED = ("temperature", "top_k", "top_p", "min_p")
NAME = "generation_config.json"


def valid_generation_config(given: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`given` with its unusable values left out, and a sentence on each change; `given` itself where all are usable.

    Usable is what a request could set (`sampling_defaults`) and what transformers saves again: it refuses sampling
    values without `do_sample: true`, among others. What the other values mean does not change.
    """
    usable, notices = sampling_defaults(given)
    notes = [f"{notice}; the output leaves it out" for notice in notices]
    dropped = {name for name in (*_SAMPLED, "repetition_penalty") if given.get(name) is not None} - usable.keys()
    found = {name: usable.get(name, value) for name, value in given.items() if name not in dropped}
    if "eos_token_id" in found and (ends := _all(found["eos_token_id"])) != found["eos_token_id"]:
        del found["eos_token_id"]
        found |= {} if ends is None else {"eos_token_id": ends}
        notes.append(f"{NAME}: eos_token_id {given['eos_token_id']!r} is written as {ends}: the rest are no token ids")
    if _refusal(found) is None:
        return found, tuple(notes)
    if found.get("temperature") == 0:
        del found["temperature"]
        found["top_k"] = 1
        notes.append(f"{NAME}: temperature 0 is written as top_k 1, which means the same and which transformers saves")
    if any(name in found for name in _SAMPLED) and found.get("do_sample") is not True:
        found["do_sample"] = True
        notes.append(f"{NAME}: do_sample is set to true: transformers refuses to save sampling values without it")
    kept: dict[str, Any] = {}
    # Others are valid or not depending on these.
    for name in sorted(found, key=lambda name: name not in ("do_sample", "num_beams")):
        refusal = _refusal({**kept, name: found[name]})
        if refusal is None:
            kept[name] = found[name]
        else:
            notes.append(f"{NAME}: {name} {str(found[name])[:80]!r} is left out of the output: {refusal}")
    return kept, tuple(notes)


def _all(given: object) -> int | list[int] | None:
    """The token ids in `given`, in its form."""
    ids = list(token_ids(given))
    return ids if isinstance(given, list) and ids else ids[0] if ids else None


def _refusal(values: Mapping[str, Any]) -> str | None:
    """Why transformers does not save these values, in its own words; None where it does."""
    from transformers import GenerationConfig

    config = GenerationConfig()
    for name, value in values.items():
        setattr(config, name, value)
    try:
        config.validate(strict=True)
    except Exception as error:  # A value of another type may fail in any comparison.
        return " ".join(str(error).split())[:160]
    return None
