"""StatefulSets that should be there: as many for each revision as its ReplicaSet's note says, one group each.

What the ReplicaSet controller does for single pods is done here for groups: those that are wanted and not there are
made, those that are too many are deleted, the least useful first. In addition,

- a group is made only once the one before has a node for each of its pods, or where there is room for all that are
  missing: two groups that are half placed would wait for each other's devices for ever;
- a group that somebody has scaled gets as many pods as its revision says;
- a group that has lost a pod with its node is deleted at once, and another is made under another name: the API server
  holds the lost pod, and with it its name, until somebody deletes the node.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from plimsoll.operator import build, names, parse
from plimsoll.operator.actions import Action, Apply, Delete, Label, MakeKey, Plan, Scale
from plimsoll.operator.plan.groups import (
    domains,
    is_broken,
    is_lost,
    members_of,
    ordinal,
    placed,
    selects_leaders,
)
from plimsoll.operator.plan.rollout import LOST
from plimsoll.operator.plan.trouble import ASK_AFTER
from plimsoll.operator.shape import mapping
from plimsoll.operator.snapshot import Pod, ReplicaSet, Snapshot, StatefulSet


@dataclass(frozen=True)
class Group:
    """One StatefulSet with the pods it has."""

    set: StatefulSet
    pods: tuple[Pod, ...]

    @property
    def placed(self) -> bool:
        return placed(self.set, self.pods)

    @property
    def ready(self) -> bool:
        whole = len(self.pods) >= self.set.pods and not any(pod.deleting for pod in self.pods)
        return whole and any(pod.ready and ordinal(pod) == 0 for pod in self.pods)


def with_groups(snapshot: Snapshot, plan: Plan) -> Plan:
    """`plan` of the folded snapshot, and what groups need beside."""
    if snapshot.deployment.deleting:
        return plan
    work = _Groups(snapshot, plan)
    actions = tuple(work.actions())
    missed = any(_unexplained(one, snapshot) for one in work.groups)
    again = [one for one in (plan.again_in, *work.again()) if one is not None]
    return replace(
        plan,
        actions=(*actions, *plan.actions),
        needs_usage=plan.needs_usage or (work.needs_room and snapshot.room is None and snapshot.nodes is not None),
        needs_events=plan.needs_events or missed,
        again_in=min(again, default=None),
    )


def _unexplained(group: Group, snapshot: Snapshot) -> bool:
    return lacks_pods(group.set, snapshot) and not group.set.last_event


def lacks_pods(own: StatefulSet, snapshot: Snapshot) -> bool:
    """Whether pods of a group were not even created, for so long that its events should say why."""
    late = snapshot.now - own.created >= ASK_AFTER and not own.deleting
    return late and len({ordinal(pod) for pod in members_of(own, snapshot)}) < own.pods


class _Groups:
    """The groups of one deployment, of every revision."""

    def __init__(self, snapshot: Snapshot, plan: Plan) -> None:
        self.snapshot, self.plan, self.needs_room = snapshot, plan, False
        live = [Group(one, tuple(members_of(one, snapshot))) for one in snapshot.stateful_sets if not one.deleting]
        self.broken = [one for one in live if is_broken(one.pods, snapshot) or self._better_elsewhere(one)]
        self.groups = [one for one in live if one not in self.broken]
        wanted = parse.shape(snapshot.deployment.spec)
        self.any = bool(wanted or snapshot.stateful_sets or any(pod.group for pod in snapshot.pods))
        self.names = {one.name for one in snapshot.stateful_sets} | {pod.group for pod in snapshot.pods if pod.group}

    def actions(self) -> Iterator[Action]:
        """In order: what is given up makes room for what is made."""
        if not self.any:
            return
        yield from self._labels()
        yield from self._surroundings()
        for one in self.broken:
            lost = next((pod for pod in one.pods if is_lost(pod, self.snapshot)), None)
            yield Delete("StatefulSet", one.set.name, f"pod {lost.name} is lost with its node" if lost else "lost")
        yield from self._strays()
        revisions = sorted(self.snapshot.replica_sets, key=lambda one: one.number, reverse=True)
        waiting = [one for one in self.groups if not one.placed]
        for revision in revisions:
            own = [one for one in self.groups if one.set.revision == revision.revision]
            if revision.shape is None or revision.replicas < 0 or revision.deleting:
                continue
            yield from self._too_many(own, revision)
            yield from self._scaled(revision)
            missing = revision.replicas - len(own)
            if missing > 0 and self._may_begin():
                # An older revision's group that has no devices yet gives way.
                older = [one for one in waiting if one.set.revision != revision.revision]
                if older and not any(one.set.revision == revision.revision for one in waiting):
                    yield from (Delete("StatefulSet", one.set.name, "a newer revision goes first") for one in older)
                    self.groups = [one for one in self.groups if one not in older]
                    return
                made = self._made(revision, missing, bool(waiting))
                yield from made
                if made:
                    return
        yield from self._keys()

    def again(self) -> Iterator[float | None]:
        """When time alone makes a group one that has lost a pod."""
        for one in self.groups:
            for pod in one.pods:
                if pod.deleting and pod.ends_by + LOST > self.snapshot.now:
                    yield pod.ends_by + LOST - self.snapshot.now + 0.5
            if lacks_pods(one.set, self.snapshot):
                yield 10.0
            elif not one.placed and self.snapshot.now - one.set.created < ASK_AFTER:
                yield ASK_AFTER + 0.5

    def _labels(self) -> Iterator[Action]:
        """Single pods of an earlier operator: without the label the Service would send them no requests."""
        for pod in self.snapshot.pods:
            if not pod.group and not pod.ended and pod.index != names.LEADS:
                yield Label(pod.name, {names.INDEX: names.LEADS})

    def _surroundings(self) -> Iterator[Action]:
        deployment, children = self.snapshot.deployment, self.snapshot.children
        policies = [build.group_policy(deployment, one.set.name) for one in self.groups]
        for wanted in (build.group_service(deployment), *policies):
            live = children.get((wanted["kind"], wanted["metadata"]["name"]))
            if live is None or build.differs(wanted, live):
                yield Apply(wanted, "missing" if live is None else "put back")
        for (kind, name), raw in children.items():
            group = parse.labels(raw).get(names.OF_GROUP)
            if kind == "NetworkPolicy" and group and group not in self.names:
                yield Delete(kind, name, "its group is gone")

    def _strays(self) -> Iterator[Action]:
        """Groups of a revision whose ReplicaSet somebody deleted; one that is made again in this look keeps them."""
        known = {one.revision for one in self.snapshot.replica_sets}
        known |= {
            parse.labels(action.object).get(names.REVISION, "")
            for action in self.plan.actions
            if isinstance(action, Apply) and action.object["kind"] == "ReplicaSet"
        }
        for one in [one for one in self.groups if one.set.revision not in known]:
            yield Delete("StatefulSet", one.set.name, "its revision is gone")
            self.groups.remove(one)

    def _too_many(self, own: list[Group], revision: ReplicaSet) -> Iterator[Action]:
        cordoned = {node.name for node in self.snapshot.nodes or () if node.cordoned}

        def use(one: Group) -> tuple[bool, bool, bool, float]:
            leaves = any(pod.node in cordoned for pod in one.pods)
            return one.ready, one.placed, not leaves, -one.set.created

        for one in sorted(own, key=use)[: max(0, len(own) - revision.replicas)]:
            yield Delete("StatefulSet", one.set.name, f"{revision.replicas} groups are wanted")
            self.groups.remove(one)

    def _scaled(self, revision: ReplicaSet) -> Iterator[Action]:
        """Groups with another number of pods than all of this revision have: no engine of that size was planned for."""
        assert revision.shape is not None
        for one in self.groups:
            nodes = revision.shape.nodes
            if one.set.revision == revision.revision and one.set.pods != nodes:
                yield Scale(one.set.name, nodes, f"a group has {nodes} pods", "StatefulSet")

    def _may_begin(self) -> bool:
        """Whether no follower would be sent a request."""
        return selects_leaders(mapping(self.snapshot.children.get(("Service", self.snapshot.deployment.name))))

    def _made(self, revision: ReplicaSet, missing: int, waits: bool) -> list[Action]:
        """The next group, or all that are missing where there is room for them."""
        snapshot, shape = self.snapshot, revision.shape
        raw = snapshot.children.get(("ReplicaSet", revision.name))
        assert shape is not None
        if raw is None or not revision.uid:
            return []
        template = raw["spec"]["template"]
        within: list[str] = []
        if shape.topology_key is not None and snapshot.nodes is not None:
            self.needs_room = True
            if snapshot.room is None:
                return []
            found = domains(snapshot, shape, snapshot.room, template)
            within, room = [value for value, _ in found], sum(count for _, count in found)
        else:
            room = snapshot.room(template) // shape.nodes if snapshot.room is not None else 0
        if waits:
            return []
        count = missing if room >= missing and shape.topology_key is None else 1
        made: list[Action] = [MakeKey(build.group_key(snapshot.deployment, revision))]
        for _ in range(count):
            name = self._free_name(revision)
            self.names.add(name)
            made += [
                Apply(build.group_policy(snapshot.deployment, name), "a new group"),
                Apply(
                    build.stateful_set(snapshot.deployment, revision.revision, template, shape, name, within=within),
                    "a new group",
                ),
            ]
        return made

    def _free_name(self, revision: ReplicaSet) -> str:
        """Of no group that is there, and of none whose pods are still held."""
        at = 0
        while (name := names.group(self.snapshot.deployment.name, revision.revision, at)) in self.names:
            at += 1
        return name

    def _keys(self) -> Iterator[Action]:
        """Secrets that a pod waits for: somebody deleted them."""
        for revision in self.snapshot.replica_sets:
            pods = [pod for one in self.groups if one.set.revision == revision.revision for pod in one.pods]
            if any(pod.stuck and f'"{revision.name}" not found' in pod.last_event for pod in pods):
                yield MakeKey(build.group_key(self.snapshot.deployment, revision))

    def _better_elsewhere(self, group: Group) -> bool:
        """Of a group whose leader's node is lost: whether other nodes take a whole one now, with what it holds."""
        snapshot = self.snapshot
        lost = [pod for pod in group.pods if is_lost(pod, snapshot)]
        raw = snapshot.children.get(("ReplicaSet", self._revision_name(group)))
        if not lost or any(pod.ready and ordinal(pod) == 0 for pod in group.pods) or raw is None:
            return False
        self.needs_room = True
        if snapshot.room is None:
            return False
        holds = sum(bool(pod.node) and pod not in lost for pod in group.pods)
        return snapshot.room(raw["spec"]["template"]) + holds >= group.set.pods

    def _revision_name(self, group: Group) -> str:
        found = (one.name for one in self.snapshot.replica_sets if one.revision == group.set.revision)
        return next(found, "")
