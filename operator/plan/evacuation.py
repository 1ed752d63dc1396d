"""Replicas on nodes that are being drained: others are started before theirs may be evicted."""

from collections.abc import Iterable
from dataclasses import dataclass

from plimsoll.operator.plan.rollout import Revision
from plimsoll.operator.snapshot import Node


@dataclass(frozen=True)
class Evacuation:
    """`told` replicas while pods leave their nodes; `let_go` gives up the only one, as no other has a place."""

    told: int
    let_go: bool = False
    look_for_room: bool = False


def evacuate(wanted: int, new: Revision, nodes: Iterable[Node] | None, room: int | None) -> Evacuation:
    """How many replicas a settled revision needs while some of its nodes are cordoned.

    A node that is merely not ready is left to the cluster: its pods may be well, and often it comes back.

    Args:
        room: pods that other nodes would take now; None when nobody looked.
    """
    cordoned = {node.name for node in nodes or () if node.cordoned}
    there = [pod for pod in new.pods if not pod.deleting and pod.phase not in ("Succeeded", "Failed")]
    leaving = [pod for pod in there if pod.node in cordoned and pod.ready]
    if not leaving or not wanted:
        return Evacuation(wanted)
    staying = len(there) - len(leaving)
    if staying >= wanted:
        return Evacuation(max(wanted, len(leaving) + wanted))
    if room is None:
        return Evacuation(max(wanted, new.set.replicas), look_for_room=True)
    told = len(leaving) + min(wanted, staying + room)
    return Evacuation(max(wanted, told), let_go=wanted == 1 and staying + room == 0)
