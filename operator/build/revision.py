"""Which change restarts a pod, as a hash: two specs have the same one where a running pod serves both alike.

It is a contract with running clusters. Defaults are dropped before hashing, so that a field added in a later version
changes no hash of the specs that do not use it, and an upgrade of the operator restarts nothing. Hence a default, once
released, never changes; tests/operator/builders/test_revision.py keeps golden hashes.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from plimsoll.api.deployment import ModelDeploymentSpec
from plimsoll.api.quantity import parse_quantity
from plimsoll.operator import names
from plimsoll.operator.snapshot import Output

#: How many pods there are, and how they are exchanged, is no matter of the pod.
_NOT_THE_PODS = frozenset({"replicas", "rollout"})


def revision(spec: Mapping[str, Any], output: Output | None = None) -> str:
    """Ten hexadecimal digits. A new `output` of the quantization job that `spec` names is another revision.

    Raises:
        pydantic.ValidationError: `spec` is no ModelDeploymentSpec.
    """
    part = restart_part(spec)
    if output is not None:
        part["output"] = {"uri": output.uri, "digest": output.digest}
    return names.digest(part)


def restart_part(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What of `spec` restarts a pod, in one spelling: sizes in bytes, seconds as numbers, defaults left out.

    It is a spec itself, so a ReplicaSet that keeps it says what to go back to.
    """
    found: dict[str, Any] = json.loads(_restart_part(json.dumps(spec)))
    return found


@lru_cache(maxsize=512)
def _restart_part(text: str) -> str:
    """Of a spec as JSON. Each look asks twice, and a spec seldom changes."""
    spec = json.loads(text)
    found = essentials(ModelDeploymentSpec.model_validate(spec))
    asked = processors(spec)
    if asked is not None:
        found["pod"] = {**found.get("pod", {}), "cpu": asked}
    return json.dumps({name: value for name, value in found.items() if name not in _NOT_THE_PODS})


def processors(spec: Mapping[str, Any]) -> int | str | None:
    """What `spec.pod.cpu` asks the scheduler for, in one spelling: 2, or 1500m. A parsed spec holds whole threads."""
    asked = (spec.get("pod") or {}).get("cpu")
    if asked is None:
        return None
    thousandths = int((parse_quantity(asked) * 1000).to_integral_value(rounding="ROUND_CEILING"))
    return f"{thousandths}m" if thousandths % 1000 else thousandths // 1000


def essentials(spec: ModelDeploymentSpec) -> dict[str, Any]:
    """Only what differs from the defaults. An empty mapping or list says nothing, so it goes too."""
    found: dict[str, Any] = _without_nothing(spec.model_dump(mode="json", by_alias=True, exclude_defaults=True))
    return found


def _without_nothing(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nothing(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _without_nothing(item) for key, item in value.items()}
    return {key: item for key, item in kept.items() if item is not None and item != {} and item != []}
