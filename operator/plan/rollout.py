"""How many pods each revision should have next.

A stateless step: it looks only at what is there, so that a restart between any two steps changes nothing. One wave of
pods is in the air at a time, a quarter of the replicas. Invariants, held by tests/operator/plan/test_rollout*.py:

- available pods are taken away only when as many new ones serve, or when no device is free for one more pod;
- no more pods are asked for than were desired, plus what free devices would take;
- an old pod's device is waited for only after that pod was deleted, and only while its node can end it:
  a pod whose node is dead stays until the node does something, and nothing waits for that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from plimsoll.operator.snapshot import Pod, ReplicaSet

#: Seconds a pod may lack a place while free devices are counted, before the scheduler is believed.
PATIENCE = 30.0
#: Seconds past the end of its grace period after which the kubelet of an ending pod is taken to be gone.
LOST = 60.0
#: Seconds in which another pod is made in place of one that has ended, where nothing keeps it from being made.
REPLACED = 60.0

Strategy = Literal["Auto", "Surge", "Replace"]


class Stage(StrEnum):
    """Where a rollout is; the reason of the Progressing condition."""

    COMPLETE = "Complete"
    SCALING = "Scaling"
    SURGING = "Surging"
    REPLACING = "Replacing"
    WAITING = "WaitingForDevice"
    FAILED = "RolloutFailed"


@dataclass(frozen=True)
class Revision:
    """One ReplicaSet with the pods it has."""

    set: ReplicaSet
    pods: tuple[Pod, ...] = ()

    @classmethod
    def of(cls, one: ReplicaSet, pods: Sequence[Pod], now: float) -> "Revision":
        """With its `pods`; of those that have ended, with the ones that are missed.

        The others may lie there for days: another was made since, or as many are there as are desired.
        """
        live = [pod for pod in pods if not pod.ended]
        newest = max((pod.created for pod in live), default=0.0)
        missing = sum(not pod.deleting for pod in live) < one.replicas

        def missed(pod: Pod) -> bool:
            late = one.blocked is None and now - pod.ended_at > REPLACED
            return missing and newest < pod.ended_at and not late

        return cls(one, tuple(pod for pod in pods if not pod.ended or missed(pod)))

    @property
    def available(self) -> int:
        return sum(pod.ready and pod.routable and not pod.deleting for pod in self.pods)

    @property
    def there(self) -> int:
        """Pods that hold a device or will: those that are ending included, those that ended not."""
        return sum(not pod.ended for pod in self.pods)

    @property
    def ending(self) -> int:
        return sum(pod.deleting and not pod.ended for pod in self.pods)

    def known(self, now: float) -> "Revision":
        """Without pods that no node ends. Their devices are as free as their nodes say, which are asked for room."""
        return replace(self, pods=tuple(pod for pod in self.pods if not 0.0 < pod.ends_by < now - LOST))

    def loses_in(self, now: float) -> float | None:
        """Seconds until the first of its ending pods is one that no node ends."""
        left = [pod.ends_by + LOST - now for pod in self.pods if pod.deleting and pod.ends_by]
        return min((one for one in left if one >= 0), default=None)

    @property
    def unplaced(self) -> bool:
        """Whether it wants a pod that cannot be placed, or not even be created."""
        return self.set.blocked is not None or any(pod.unschedulable and not pod.deleting for pod in self.pods)

    def unplaced_since(self, now: float) -> float:
        """Seconds that its oldest unplaced pod has waited."""
        return max((now - pod.created for pod in self.pods if pod.unschedulable and not pod.deleting), default=0.0)

    @property
    def worth(self) -> int:
        """Pods worth keeping: one that never proved itself and does not serve is not."""
        return self.set.replicas if self.set.proven else min(self.set.replicas, self.available)


@dataclass(frozen=True)
class Step:
    """replicas by ReplicaSet name, where the rollout is, and whether free devices would change the answer."""

    replicas: Mapping[str, int]
    stage: Stage
    needs_room: bool = False


def next_step(
    desired: int,
    new: Revision,
    others: Sequence[Revision],
    strategy: Strategy,
    room: int | None,
    now: float,
    *,
    failed: bool = False,
    may_look: bool = True,
) -> Step:
    """The next replicas of every revision.

    Args:
        desired: replicas the spec asks for.
        new: the revision of the current spec; with `replicas` 0 when it has just been made.
        others: every other revision.
        room: pods of `new` that free devices would take; None when that is not known.
        now: seconds since the epoch.
        failed: `new` was given up, and `others` hold a proven revision.
        may_look: whether looking is possible; where it is not, a surge is tried and the scheduler answers.
    """
    if failed:
        return _stand_still(desired, new, others)
    new, others = new.known(now), [old.known(now) for old in others]
    old_target = sum(old.set.replicas for old in others)
    if old_target == 0:
        # Pods that only end, draining for minutes maybe, are no part of what is desired any more.
        settled = new.set.replicas == desired and new.available == desired and new.there - new.ending == desired
        ended = all(old.there == old.ending for old in others)
        return Step(_targets(new, desired, others, 0), Stage.COMPLETE if settled and ended else Stage.SCALING)
    wave = max(1, -(-desired // 4))
    target = min(new.set.replicas, desired)
    # As many old ones as new ones do not yet serve for; the ReplicaSet takes away those that are not ready first.
    old = min(sum(revision.worth for revision in others), max(0, desired - new.available))
    in_the_air = max(0, target - new.available)
    grow = min(wave - in_the_air, desired - target)
    vacated = desired - target - max(old, sum(revision.there for revision in others))
    if vacated > 0:
        # Places that old pods have left are taken without asking: they were ours.
        target += min(vacated, desired - target)
        return Step(_targets(new, target, others, old), Stage.REPLACING)
    leaving = any(revision.ending or revision.there > revision.set.replicas for revision in others) or old < old_target
    if strategy == "Surge":
        over = target + old - desired
        target += max(0, min(grow, wave - max(0, over)))
        stuck = new.unplaced and in_the_air > 0
        return Step(_targets(new, target, others, old), Stage.WAITING if stuck else Stage.SURGING)
    if strategy == "Replace":
        over = target + old - desired
        if over > 0 and new.unplaced and not leaving:
            # Fewer are desired than when it was asked for: what it waits for is a device of these.
            old -= min(over, old)
        elif not in_the_air and not leaving:
            old -= min(wave, old, desired - target)
        return Step(_targets(new, target, others, old), Stage.REPLACING)
    if new.unplaced_since(now) > PATIENCE or new.set.blocked:
        room = 0
    return _auto(desired, new, others, room, target, old, grow, wave, leaving, may_look)


def _auto(
    desired: int, new: Revision, others: Sequence[Revision], room: int | None,
    target: int, old: int, grow: int, wave: int, leaving: bool, may_look: bool,
) -> Step:  # fmt: skip
    """A surge where a device is free, else one drained and replaced."""
    over = target + old - desired
    if new.unplaced and over > 0 and not leaving:
        # The surge found no place: what it waits for must not be a device of ours that stays in use.
        if room is None and may_look:
            return Step(_targets(new, target, others, old), Stage.WAITING, needs_room=True)
        if not room:
            old = max(0, old - min(over, wave))
            return Step(_targets(new, target, others, old), Stage.REPLACING)
    if grow <= 0 or leaving:
        return Step(_targets(new, target, others, old), Stage.SURGING if over > 0 else Stage.REPLACING)
    if room is None and may_look:
        return Step(_targets(new, target, others, old), Stage.SURGING, needs_room=True)
    free = 1 if room is None else room
    if free > 0:
        return Step(_targets(new, target + min(grow, free), others, old), Stage.SURGING)
    old -= min(wave, old, desired - target)
    return Step(_targets(new, target, others, old), Stage.REPLACING)


def _stand_still(desired: int, new: Revision, others: Sequence[Revision]) -> Step:
    """What serves goes on; the proven revision fills the rest."""
    available = min(new.available, desired)
    back_to = max((old for old in others if old.set.proven), key=lambda old: old.set.number)
    targets, rest = {}, desired - available
    for old in sorted(others, key=lambda old: old is not back_to):
        targets[old.set.name] = min(old.available, rest)
        rest -= targets[old.set.name]
    targets[back_to.set.name] += rest
    targets[new.set.name] = available
    return Step(targets, Stage.FAILED)


def _targets(new: Revision, target: int, others: Sequence[Revision], old: int) -> dict[str, int]:
    """Shares `old` among the other revisions: what serves is kept first, then what is on its way to; of those
    that serve as many, the newest's."""
    ordered = sorted(others, key=lambda r: (r.available, r.set.proven, r.set.number), reverse=True)
    targets = {revision.set.name: 0 for revision in ordered}
    for most in (lambda r: min(r.worth, r.available), lambda r: r.worth):
        for revision in ordered:
            keep = min(old, most(revision) - targets[revision.set.name])
            targets[revision.set.name] += keep
            old -= keep
    return {new.set.name: target, **targets}
