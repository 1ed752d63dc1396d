"""Groups of pods: StatefulSets to the snapshot's values. Pure; what is missing or odd becomes a default."""

from collections.abc import Mapping
from typing import Any

from plimsoll.operator import kinds, names, parse
from plimsoll.operator.shape import mapping, text, timestamp, whole
from plimsoll.operator.snapshot import StatefulSet


def stateful_sets(children: Mapping[tuple[str, str], Mapping[str, Any]], uid: str) -> tuple[StatefulSet, ...]:
    """The groups among `children` that the deployment `uid` controls, oldest first."""
    found = [
        StatefulSet(
            name=name,
            uid=text(parse.meta(raw).get("uid")),
            revision=parse.labels(raw).get(names.REVISION) or parse.selected_revision(raw),
            pods=whole(mapping(raw.get("spec")).get("replicas"), 1),
            created=timestamp(parse.meta(raw).get("creationTimestamp")),
            deleting=bool(parse.meta(raw).get("deletionTimestamp")),
        )
        for (kind, name), raw in children.items()
        if kind == kinds.STATEFUL_SET.name and parse.owner(raw) in ("", uid)
    ]
    return tuple(sorted(found, key=lambda one: (one.created, one.name)))
