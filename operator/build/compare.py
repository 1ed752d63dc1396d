"""Whether an object still is as we want it, in the eyes of server-side apply: only our fields count."""

from collections.abc import Mapping, Sequence
from typing import Any

from plimsoll.api.quantity import parse_quantity

#: Lists that the API server merges by these fields, by the name of the list. All other lists are ours as a whole.
_MERGED: Mapping[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "volumes": ("name",),
    "env": ("name",),
    "imagePullSecrets": ("name",),
    "volumeMounts": ("mountPath",),
    "ports": ("port", "containerPort", "protocol"),
    "ownerReferences": ("uid",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
}
#: Mappings in which another key changes what ours mean, and lists of which the same is true all the way down.
_WHOLE = frozenset({"selector", "podSelector", "namespaceSelector", "labelSelector", "nodeSelector", "matchLabels"})
_WHOLE_BELOW = frozenset({"ingress", "egress"})
#: Whose values are quantities, by the name of the mapping or of the field.
_AMOUNTS = frozenset({"limits", "requests", "sizeLimit"})
#: Fields whose `false` the API server does not store.
_FALSE_IF_ABSENT = frozenset({"publishNotReadyAddresses"})
#: Fields that take a number or a text that says it.
_INT_OR_TEXT = frozenset({"port", "targetPort", "maxUnavailable", "minAvailable"})


def differs(wanted: Mapping[str, Any], live: Mapping[str, Any]) -> bool:
    """Whether a field of `wanted` reads otherwise in `live`.

    What the API server fills in, what others add, how it spells quantities, and in which order it keeps what it merges
    by key make no difference; an empty list or text of `wanted` equals one that is not there.
    """
    return not _holds(wanted, live, "")


def _holds(wanted: Any, live: Any, field: str, whole: bool = False) -> bool:
    """`field` is the name that the value has, `whole` whether others may not add to it."""
    if isinstance(wanted, Mapping):
        if not isinstance(live, Mapping):
            return False
        if (whole or field in _WHOLE) and _keys(live) != _keys(wanted):
            return False
        inner = field if field in _AMOUNTS else None
        return all(_holds(value, live.get(key), inner or key, whole) for key, value in wanted.items())
    if isinstance(wanted, list | tuple):
        return _list_holds(wanted, [] if live is None else live, field, whole or field in _WHOLE_BELOW)
    if wanted == live and isinstance(wanted, bool) == isinstance(live, bool):
        return True
    if field in _FALSE_IF_ABSENT:
        return wanted is False and live is None
    if field in _AMOUNTS:
        return _same_amount(wanted, live)
    if field in _INT_OR_TEXT and live is not None:
        return str(wanted) == str(live)
    # The API server keeps no empty text.
    return wanted in (None, "") and live in (None, "")


def _list_holds(wanted: Sequence[Any], live: Any, field: str, whole: bool) -> bool:
    if not isinstance(live, list | tuple):
        return False
    fields = None if whole else _MERGED.get(field)
    if fields is None or not all(isinstance(item, Mapping) for item in (*wanted, *live)):
        return len(wanted) == len(live) and all(
            _holds(ours, theirs, "", whole) for ours, theirs in zip(wanted, live, strict=True)
        )
    found = {_key(item, fields): item for item in live}
    return all(_key(item, fields) in found and _holds(item, found[_key(item, fields)], "") for item in wanted)


def _key(item: Mapping[str, Any], fields: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(item.get(name, "TCP" if name == "protocol" else "")) for name in fields)


def _keys(value: Mapping[str, Any]) -> set[str]:
    """Those that the API server keeps: an empty selector means everything, an empty list is nothing."""
    return {key for key, item in value.items() if item is not None and item != []}


def _same_amount(wanted: Any, live: Any) -> bool:
    try:
        return parse_quantity(wanted) == parse_quantity(live)
    except ValueError:
        return False
