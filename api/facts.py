"""From a `config.json` to `ModelFacts`, by the family that the configuration names."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from plimsoll.api.config_keys import refuse_keys, refuse_other_model_type, unknown_keys
from plimsoll.api.config_values import short
from plimsoll.api.errors import CheckpointError
from plimsoll.api.families.registry import all_families, find_family
from plimsoll.api.model import ModelFacts, TensorFact
from plimsoll.api.rope_config import lost_theta, unknown_rope_keys


def facts_from_config(config: Mapping[str, Any], tensors: Mapping[str, TensorFact] | None = None) -> ModelFacts:
    """Facts of the model that `config` (a Hugging Face `config.json`, of transformers 4 or 5) describes.

    Raises:
        CheckpointError: an architecture, activation, scaling or quantization that is not run, a field that is missing,
            or one whose value makes no sense; the message names it.
    """
    family = find_family(_architecture(config))
    refuse_other_model_type(config, family)
    refuse_keys(config, family)
    return replace(family.facts(config), tensors=tensors)


def config_notes(config: Mapping[str, Any], where: str = "") -> tuple[str, ...]:
    """Sentences on keys of `config` that are not known, or that transformers reads in an unexpected way.

    Args:
        config: one that `facts_from_config` takes.
        where: put before each key.
    """
    notes = []
    unknown = [*unknown_keys(config), *unknown_rope_keys(config)]
    if unknown:
        shown = ", ".join(key[:80] for key in unknown[:12]) + (f" and {len(unknown) - 12} more" if unknown[12:] else "")
        notes.append(f"{where}these keys are not known and are ignored: {shown}")
    lost = lost_theta(config)
    if lost is not None:
        notes.append(
            f"{where}rope_scaling replaces rope_parameters, and with it rope_theta {lost:g}: as in transformers, 10000 "
            f'is used; if the model was trained with {lost:g}, add "rope_theta": {lost:g} to rope_scaling'
        )
    return tuple(notes)


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    if not isinstance(names, Sequence) or isinstance(names, str) or len(names) != 1 or not isinstance(names[0], str):
        raise CheckpointError(
            "must list exactly one class name", field="architectures", value=short(names),
            fix=f"One of {', '.join(sorted(all_families()))}",
        )  # fmt: skip
    find_family(names[0])
    return names[0]
