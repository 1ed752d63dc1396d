"""Replicas on nodes that are being drained: others are started before theirs may be evicted."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from plimsoll.operator.plan.rollout import Revision
from plimsoll.operator.plan.trouble import Trouble
from plimsoll.operator.snapshot import Node, Pod

#: Seconds a successor may have trouble before it is believed that it will not serve while the leaving one is there.
HOPE = 60.0


@dataclass(frozen=True)
class Evacuation:
    """The `replicas` to keep while pods leave their nodes. `let_go` lets pods go though nothing takes their place."""

    replicas: int
    let_go: bool = False
    needs_room: bool = False
    again_in: float | None = None
    """Seconds until hope in a successor ends."""


def evacuate(
    desired: int, revision: Revision, nodes: Iterable[Node] | None, room: int | None,
    troubles: Collection[Trouble] = (), now: float = 0.0,
) -> Evacuation:  # fmt: skip
    """How many replicas a revision that serves alone needs while some of its nodes are cordoned.

    A node that is merely not ready is left to the cluster: its pods may be well, and often it comes back.

    Args:
        room: pods that other nodes would take now; None when that is not known.
        troubles: of the revision's pods.
    """
    cordoned = {node.name for node in nodes or () if node.cordoned}
    there = [pod for pod in revision.pods if not pod.deleting and pod.phase not in ("Succeeded", "Failed")]
    leaving = [pod for pod in there if pod.node in cordoned and pod.ready]
    if not leaving or not desired:
        return Evacuation(desired)
    staying = len(there) - len(leaving)
    hope = _hope([pod for pod in there if pod not in leaving], troubles, now)
    if hope is not None and hope <= 0:
        # What room was counted for it is none: a volume, a port, an image that only this node has.
        return Evacuation(max(desired, min(revision.set.replicas, len(leaving) + desired)), let_go=True)
    if staying >= desired:
        return Evacuation(max(desired, len(leaving) + desired), again_in=hope)
    if room is None:
        return Evacuation(max(desired, revision.set.replicas), needs_room=True, again_in=hope)
    replicas = len(leaving) + min(desired, staying + room)
    return Evacuation(max(desired, replicas), let_go=desired == 1 and staying + room == 0, again_in=hope)


def _hope(successors: Collection[Pod], troubles: Collection[Trouble], now: float) -> float | None:
    """Seconds until the first successor in trouble has been so for too long; None where none is in any."""
    names = {trouble.pod for trouble in troubles}
    return min((pod.created + HOPE - now for pod in successors if pod.name in names and not pod.ready), default=None)
