"""Groups of pods as the planner sees them: each is one pod, and a revision's number of groups is its replicas.

The planner, the rollout and the status then treat a group as they treat a pod. `group_sets` does the rest: it makes and
deletes groups until each revision has as many as the planner wrote down for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

from plimsoll.operator import names, parse
from plimsoll.operator.plan.rollout import LOST
from plimsoll.operator.plan.trouble import moved, troubles
from plimsoll.operator.shape import mapping
from plimsoll.operator.snapshot import Node, Pod, ReplicaSet, Room, Shape, Snapshot, StatefulSet

#: Troubles that name a cause, the best one first. Others say only that a pod is not ready: so are all of its group.
_CAUSES = (
    "NodeNotReady", "ImagePull", "OutOfMemory", "SourceChanged", "CrashLoop", "FailedMount", "ContainerConfig",
    "Unschedulable", "Evicted", "Restarted",
)  # fmt: skip


def fold(snapshot: Snapshot) -> Snapshot:
    """`snapshot` with one pod in place of each group's, and without what only concerns groups."""
    wanted = parse.shape(snapshot.deployment.spec)
    members = [pod for pod in snapshot.pods if pod.group]
    if wanted is None and not snapshot.stateful_sets and not members:
        return snapshot
    single = [pod for pod in snapshot.pods if not pod.group]
    sets = {one.revision: one for one in snapshot.replica_sets}
    there = {one.uid: one for one in snapshot.stateful_sets}
    by_set: dict[str, list[Pod]] = {uid: [] for uid in there}
    for pod in members:
        by_set.setdefault(pod.owner, []).append(pod)
    groups = []
    for uid, pods in by_set.items():
        own = there.get(uid)
        revision = sets.get(own.revision if own else pods[0].revision)
        live = [pod for pod in pods if not pod.ended] if own is None else pods
        if revision is not None and (own or live):
            groups.append(as_one(own, live, revision, snapshot))
    everybody = sorted((*single, *groups), key=lambda one: (one.created, one.name))
    return replace(
        snapshot,
        replica_sets=tuple(_counted(one, snapshot) for one in snapshot.replica_sets),
        pods=tuple(everybody),
        room=snapshot.room and _room_of(snapshot, wanted, snapshot.room),
        leaders=chooses_leaders(snapshot, single),
    )


def _counted(one: ReplicaSet, snapshot: Snapshot) -> ReplicaSet:
    """With as many groups as there are where the note of how many there should be cannot be read, and with why a pod of
    one cannot be created."""
    own = [group for group in snapshot.stateful_sets if group.revision == one.revision and not group.deleting]
    refused = next((group.last_event for group in own if group.last_event), None)
    return replace(
        one,
        replicas=len(own) if one.replicas == parse.UNREADABLE else one.replicas,
        blocked=one.blocked or refused,
    )


def chooses_leaders(snapshot: Snapshot, single: Iterable[Pod]) -> bool:
    """Whether the Service may choose pods by their number: where it does already, or no single pod would be lost."""
    service = mapping(snapshot.children.get(("Service", snapshot.deployment.name)))
    return selects_leaders(service) or all(pod.index == names.LEADS or pod.ended for pod in single)


def selects_leaders(service: Mapping[str, Any]) -> bool:
    """Whether a Service, as it is in the cluster, sends requests to no follower."""
    return names.INDEX in mapping(mapping(service.get("spec")).get("selector"))


def members_of(own: StatefulSet, snapshot: Snapshot) -> list[Pod]:
    """The pods that a StatefulSet has."""
    return [pod for pod in snapshot.pods if pod.owner == own.uid and pod.group]


def ordinal(pod: Pod) -> int:
    """Its number in its group; -1 where its name has none."""
    number = pod.name.rpartition("-")[2]
    return int(number) if number.isdecimal() and len(number) < 5 else -1


def placed(own: StatefulSet, pods: Sequence[Pod]) -> bool:
    """Whether every pod of the group is there and has a node."""
    return len({ordinal(pod) for pod in pods if pod.node and not pod.ended}) >= own.pods


def is_lost(pod: Pod, snapshot: Snapshot) -> bool:
    """Whether its kubelet is gone, so that it neither serves nor ends.

    A node that was not ready before the pod was made, or never, is ready by now: the scheduler has chosen it.
    """
    nodes = (node for node in snapshot.nodes or () if node.name == pod.node and node.not_ready)
    dead = any(node.not_ready_at > pod.created for node in nodes)
    return not pod.ended and (dead or 0.0 < pod.ends_by < snapshot.now - LOST)


def is_broken(pods: Sequence[Pod], snapshot: Snapshot) -> bool:
    """Whether the group has lost a pod that it cannot get back, and its leader says that it does not serve.

    A leader whose own node is lost says nothing: its pods may be well. Such a group is broken once the cluster deletes
    the pod, five minutes later by default, or where other nodes take a whole group at once (`group_sets`).
    """
    lost = [pod for pod in pods if is_lost(pod, snapshot)]
    leader = next((pod for pod in pods if ordinal(pod) == 0), None)
    if not lost or (leader is not None and leader.ready):
        return False
    return leader is None or leader not in lost or leader.deleting


def as_one(own: StatefulSet | None, pods: Sequence[Pod], revision: ReplicaSet, snapshot: Snapshot) -> Pod:
    """A group as one pod: it serves as its leader does, and it waits for what its worst pod waits for.

    Args:
        own: None of a group whose StatefulSet is gone: its pods are ending.
        pods: at least one where `own` is None.
    """
    name = own.name if own else pods[0].group
    missing = _missing(own, pods)
    everybody = [*pods, *missing]
    leader = next((pod for pod in pods if ordinal(pod) == 0), None)
    deleting = own is None or own.deleting or is_broken(pods, snapshot)
    going = any(pod.deleting or pod.ended for pod in pods)
    ready = leader is not None and leader.ready and not going and not missing
    worst = _worst(everybody, leader, snapshot)
    page = leader.page if leader else None
    if page is not None and not ready and worst.page is not None:
        page = replace(page, phase=worst.page.phase)
    ends = [pod.ends_by for pod in pods]
    return replace(
        worst,
        name=f"{worst.name} of group {name}",
        uid=own.uid if own else pods[0].owner,
        revision=revision.revision,
        owner=revision.uid,
        # What has ended is made again; nothing waits for it.
        phase="Pending" if worst.ended else worst.phase,
        ready=ready and not deleting,
        routable=leader is not None and leader.routable,
        deleting=deleting,
        ends_by=max(ends, default=0.0) if deleting and all(ends) else 0.0,
        created=max((pod.created for pod in everybody), default=0.0),
        seen_since=max((moved(pod) for pod in everybody), default=0.0),
        unready_at=max((pod.unready_at for pod in pods), default=0.0),
        node=_node(everybody, snapshot.nodes or ()),
        page=page,
        unread=leader is not None and leader.unread,
    )


def _missing(own: StatefulSet | None, pods: Sequence[Pod]) -> list[Pod]:
    if own is None:
        return []
    there = {ordinal(pod) for pod in pods}
    return [Pod(f"{own.name}-{at}", created=own.created) for at in range(min(own.pods, 64)) if at not in there]


def _worst(pods: Sequence[Pod], leader: Pod | None, snapshot: Snapshot) -> Pod:
    """The pod that the others wait for: the one in the worst trouble, else one that is missing or has not joined."""
    by_name = {pod.name: pod for pod in pods}
    if (lost := next((pod for pod in pods if is_lost(pod, snapshot)), None)) is not None:
        return lost
    found = [one for one in troubles(pods, inf, snapshot.now, snapshot.nodes) if one.reason in _CAUSES]
    if found:
        return by_name[min(found, key=lambda one: (not one.fatal, _CAUSES.index(one.reason))).pod]
    late = [by_name[name] for name in (leader.page.waiting_for if leader and leader.page else ()) if name in by_name]
    absent = [pod for pod in pods if pod.deleting or not pod.node]
    return next(iter((*absent, *late)), leader or pods[0])


def _node(pods: Sequence[Pod], nodes: Iterable[Node]) -> str | None:
    """A node that is lost or being emptied, where one of the pods is on such a node; None while any has none."""
    if not all(pod.node for pod in pods):
        lost = {node.name for node in nodes if node.not_ready}
        return next((pod.node for pod in pods if pod.node in lost), None)
    leaves = {node.name: bool(node.not_ready) + 1 for node in nodes if node.not_ready or node.cordoned}
    return max(pods, key=lambda pod: (leaves.get(pod.node or "", 0), ordinal(pod) == 0)).node


def _room_of(snapshot: Snapshot, wanted: Shape | None, room: Room) -> Room:
    """Groups instead of pods, where the wanted revision is one of groups."""
    if wanted is None:
        return room

    def groups(template: Mapping[str, Any], /, among: Any = None) -> int:
        if wanted.topology_key is None:
            return room(template, among) // wanted.nodes if among is not None else room(template) // wanted.nodes
        return sum(counts for _, counts in domains(snapshot, wanted, room, template))

    return groups


def domains(snapshot: Snapshot, shape: Shape, room: Room, template: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Values of the topology key with room for whole groups, and for how many of them."""
    assert shape.topology_key is not None
    nodes: dict[str, set[str]] = {}
    for node in snapshot.nodes or ():
        if shape.topology_key in node.labels:
            nodes.setdefault(node.labels[shape.topology_key], set()).add(node.name)
    held = {pod.node for pod in snapshot.pods if pod.group and pod.node and not pod.ended} if shape.apart else set()
    found = []
    for value, names_of in sorted(nodes.items()):
        count = 0 if held & names_of else room(template, names_of) // shape.nodes
        if count:
            found.append((value, 1 if shape.apart else count))
    return found
