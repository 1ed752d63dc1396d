"""From one deployment's snapshot to everything that should be done about it now.

Level-triggered: nothing is remembered between two looks but what the cluster itself holds. Acting on a plan and looking
again leads on; a plan without actions means that what is wanted is there, or that only others can move.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from plimsoll.operator import build, names
from plimsoll.operator.actions import (
    Action,
    Apply,
    Delete,
    MarkFailed,
    MarkProven,
    Plan,
    Renumber,
    Scale,
    ordered,
)
from plimsoll.operator.plan import rollout
from plimsoll.operator.plan.admission import Admission, admit, standing
from plimsoll.operator.plan.devices import selected
from plimsoll.operator.plan.evacuation import Evacuation, evacuate
from plimsoll.operator.plan.holding import alone, desired_replicas, holding
from plimsoll.operator.plan.inspecting import inspecting
from plimsoll.operator.plan.rollout import Revision, Stage, Step
from plimsoll.operator.plan.status import Rolling, status
from plimsoll.operator.plan.transitions import transitions
from plimsoll.operator.plan.trouble import ASK_AFTER, Trouble, creating, deadline_in, troubles, waits_unexplained
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import Failure, Pod, ReplicaSet, Room, Snapshot

#: Revisions without pods that are kept to go back to.
HISTORY = 10


def plan(snapshot: Snapshot, settings: Settings, version: str) -> Plan:
    """What to do, what to say, and when to look again.

    Args:
        version: of this operator; pod templates rendered by another are left as they are.
    """
    if snapshot.deployment.deleting:
        # Owner references take everything along; what is created now would only be in the way.
        return Plan()
    admission, revision, new, others = _desired(snapshot, settings)
    version = rendering(settings, version, admission)
    actions, again = _inspecting(snapshot, admission, settings)
    again += [_ask_in(pod, snapshot.now) for pod in _everybody(snapshot) if creating(pod)]
    if snapshot.taken is not None and not admission.ok:
        # No watch reports that a pod has left its node.
        again.append(30.0)
    if admission.ok:
        assert admission.spec is not None
        rolled = _Roll(snapshot, admission, settings, version, revision or "", new, others)
        rolling, needs_room = rolled.rolling, rolled.step.needs_room
        actions += [*rolled.children(), *rolled.sets()]
        again += [] if rolled.again_in is None else [rolled.again_in]
    else:
        there = (*others, *((new,) if new else ()))
        actions += holding(snapshot, there)
        desired = desired_replicas(snapshot, sum(one.set.replicas for one in there))
        rolling, needs_room = Rolling(desired, new, others, Stage.SCALING, ()), False
    found = status(snapshot, admission, rolling, revision)
    return Plan(
        actions=ordered(actions),
        status=found,
        events=transitions(snapshot.deployment.status.get("conditions", ()), found["conditions"]),
        needs_usage=needs_room or (admission.needs_taken and snapshot.taken is None),
        needs_events=any(waits_unexplained(pod, snapshot.now) and not pod.last_event for pod in _everybody(snapshot)),
        again_in=min(again, default=None),
    )


def _inspecting(snapshot: Snapshot, admission: Admission, settings: Settings) -> tuple[list[Action], list[float]]:
    """What brings the headers of the model and of its draft, and seconds after which to look again."""
    looks = [inspecting(snapshot, admission, settings)]
    spec, beside = admission.spec, snapshot.inspecting_draft
    if spec is not None and spec.serving.draft is not None and beside != snapshot.inspecting:
        asked = replace(admission, spec=build.of_draft(spec), needs_inspection=True)
        looks.append(inspecting(replace(snapshot, inspecting=beside), asked, settings))
    actions: list[Action] = []
    for found, _ in looks:
        actions += [one for one in found if one not in actions]
    return actions, [look_in + 0.5 for _, look_in in looks if look_in is not None]


def rendering(settings: Settings, version: str, admission: Admission) -> str:
    """Names what a template was rendered from beside the user's spec: this version, these settings, what was inspected
    and sized. From anything else what is there is left as it is: no setting, branch that moved or node that joined
    reaches into a revision that runs, whose pods must stay alike."""
    parts = settings.model_dump(mode="json", include={"runtime_image", "cuda_runtime_image", "image_pull_secrets"})
    if admission.inspection and admission.budget:
        parts["inspected"] = [admission.inspection.revision, admission.inspection.digest, admission.inspection.path]
        if admission.inspection.contents:
            parts["inspected"].append(admission.inspection.contents)
        if admission.draft:
            parts["draft"] = [admission.draft.revision, admission.draft.digest, admission.draft.path]
        parts["sized"] = [admission.budget.precision, admission.budget.tensor, admission.budget.total]
    if admission.placing:
        parts["placed"] = dataclasses.astuple(admission.placing)
    return f"{version}+{names.digest(parts, 8)}"


def _desired(
    snapshot: Snapshot, settings: Settings
) -> tuple[Admission, str | None, Revision | None, tuple[Revision, ...]]:
    """What is wanted, the name of its revision, that revision if it is there, and the others, oldest first."""
    admission = admit(snapshot, settings)
    revision = build.revision(snapshot.deployment.spec, admission.output) if admission.spec else None
    found = [
        Revision.of(one, [pod for pod in snapshot.pods if pod.owner == one.uid], snapshot.now)
        for one in snapshot.replica_sets
    ]
    new = next((one for one in found if one.set.revision == revision), None)
    others = sorted((one for one in found if one is not new), key=lambda one: one.set.number)
    return standing(admission, new.set if new else None, snapshot), revision, new, tuple(others)


def _everybody(snapshot: Snapshot) -> tuple[Pod, ...]:
    looking = (one.pod for one in (snapshot.inspecting, snapshot.inspecting_draft) if one is not None)
    return (*snapshot.pods, *(pod for pod in looking if pod is not None))


def _ask_in(pod: Pod, now: float) -> float:
    """Seconds until its events are worth reading, and then reading again: ever more rarely, for a minute at most."""
    age = now - pod.created
    return max(0.5, ASK_AFTER + 0.5 - age) if age < ASK_AFTER else min(60.0, max(10.0, age / 2))


def _render(
    snapshot: Snapshot,
    admission: Admission,
    settings: Settings,
    revision: str,
    number: int,
    replicas: int,
    version: str,
) -> dict[str, Any]:
    assert admission.spec is not None
    assert admission.inspection is not None
    assert admission.budget is not None
    volumes = settings.image_volumes == "auto" and snapshot.image_volumes
    return build.replica_set(
        snapshot.deployment, admission.spec, admission.inspection, admission.budget, settings,
        revision=revision, number=number, replicas=replicas, image_volumes=volumes, version=version,
        output=admission.output, placing=admission.placing, draft=admission.draft,
    )  # fmt: skip


class _Roll:
    """An accepted deployment: the step it takes now, and the objects that go with it."""

    def __init__(
        self, snapshot: Snapshot, admission: Admission, settings: Settings, version: str, revision: str,
        new: Revision | None, others: tuple[Revision, ...],
    ) -> None:  # fmt: skip
        assert admission.spec is not None
        self.snapshot, self.admission, self.settings, self.version = snapshot, admission, settings, version
        self.spec, self.revision, self.others = admission.spec, revision, others
        self.fresh = new is None
        highest = max((old.set.number for old in others), default=0)
        self.number = highest + 1 if new is None or new.set.number <= highest else new.set.number
        self.new = new or Revision(
            ReplicaSet(name=f"{snapshot.deployment.name}-{revision}", uid="", revision=revision, replicas=0)
        )
        now, deadline = snapshot.now, self.spec.rollout.progress_deadline
        self.troubles = self._named(troubles(self.new.pods, deadline, now, snapshot.nodes))
        self.newly_failed = self._verdict()
        failure = self.new.set.failure or self.newly_failed
        goes_back = failure is not None and any(old.set.proven for old in others) and not self.new.set.proven
        if goes_back and self.newly_failed:
            self.new = replace(self.new, set=replace(self.new.set, failure=self.newly_failed))
        self.forgiven = failure is not None and not goes_back
        self.goes_back = goes_back
        self.room: int | None = None
        self.step, self.evacuation = self._step(deadline)
        if self.step.needs_room and snapshot.room is not None:
            self.room = self._room(snapshot.room)
            self.step, self.evacuation = self._step(deadline)
        serving_others = [pod for old in others if self.step.replicas[old.set.name] for pod in old.pods]
        self.again_in = self._again(deadline)
        also: tuple[Trouble, ...] = () if goes_back else troubles(serving_others, deadline, now, snapshot.nodes)
        self.rolling = Rolling(
            self.spec.replicas, self.new, others, self.step.stage, (*self.troubles, *also), self.room
        )

    def _named(self, found: tuple[Trouble, ...]) -> tuple[Trouble, ...]:
        """With the labels that no node has, where those are why a pod finds no place: the scheduler names none."""
        missing = selected(self.snapshot.nodes, self.spec.pod.node_selector)
        if missing is None:
            return found
        return tuple(
            replace(one, message=f"{missing}; {one.message}") if one.reason == "Unschedulable" else one for one in found
        )

    def _verdict(self) -> Failure | None:
        """Whether the wanted revision is given up now: it never proved itself, and there is one to go back to."""
        fatal = next((trouble for trouble in self.troubles if trouble.fatal), None)
        known = self.new.set.failure is not None or self.new.set.proven
        if fatal is None or known or not any(old.set.proven for old in self.others):
            return None
        return Failure(fatal.reason, f"pod {fatal.pod}: {fatal.message}", self.snapshot.now)

    def _room(self, room: Room) -> int:
        """Pods of the new revision that would find a place now, beside its own that still wait for one."""
        live = self.snapshot.children.get(("ReplicaSet", self.new.set.name)) or self._rendered(1)
        unplaced = sum(pod.node is None and not pod.deleting for pod in self.new.pods)
        return max(0, room(live["spec"]["template"]) - unplaced)

    def _step(self, deadline: float) -> tuple[Step, Evacuation]:
        """The rollout's next step, changed where nodes of the only serving revision are drained."""
        step = rollout.next_step(
            self.spec.replicas, self.new, self.others, self.spec.rollout.strategy, self.room, self.snapshot.now,
            failed=self.goes_back, may_look=self.snapshot.nodes is not None,
        )  # fmt: skip
        # The one revision that serves, where it is alone: the wanted one, or the one that was gone back to.
        alone = [one for one in (self.new, *self.others) if one.set.replicas or step.replicas[one.set.name]]
        if len(alone) != 1 or not alone[0].set.replicas:
            return step, Evacuation(self.spec.replicas)
        [one] = alone
        found = evacuate(
            self.spec.replicas, one, self.snapshot.nodes, self.room,
            troubles(one.pods, deadline, self.snapshot.now, self.snapshot.nodes), self.snapshot.now,
        )  # fmt: skip
        if found.replicas == self.spec.replicas and not found.needs_room:
            return step, found
        # More than are wanted, for as long as the node is cordoned: that is no step on the way to anything.
        settled = one is self.new and one.set.replicas == found.replicas and one.available >= self.spec.replicas
        targets = {**step.replicas, one.set.name: found.replicas}
        stage = Stage.COMPLETE if settled else step.stage
        return replace(step, replicas=targets, stage=stage, needs_room=found.needs_room), found

    def _again(self, deadline: float) -> float | None:
        times = [deadline_in(self.new.pods, deadline, self.snapshot.now), self.evacuation.again_in]
        waited = self.new.unplaced_since(self.snapshot.now)
        if waited:
            times.append(max(1.0, rollout.PATIENCE - waited + 1.0) if waited <= rollout.PATIENCE else None)
        times += [old.loses_in(self.snapshot.now) for old in self.others]
        if any(not trouble.fatal and trouble.reason == "ContainerConfig" for trouble in self.troubles):
            times.append(10.0)
        return min((one + 0.5 for one in times if one is not None), default=None)

    def children(self) -> Iterator[Action]:
        deployment = self.snapshot.deployment
        wanted = [
            build.service(deployment, leaders=self.snapshot.leaders, alone=alone(self.snapshot, self.step.replicas)),
            # An only replica is kept where somebody sees to a second one.
            build.disruption_budget(
                deployment,
                self.spec.replicas,
                self.spec.parallelism.nodes,
                hold=self.snapshot.nodes is not None,
                let_go=self.evacuation.let_go,
            ),
            build.network_policy(deployment, self.spec, self.settings),
            *build.monitors(deployment, self.snapshot.apis, self.settings),
        ]
        for one in wanted:
            live = self.snapshot.children.get((one["kind"], one["metadata"]["name"]))
            if live is None or build.differs(one, live):
                yield Apply(one, "missing" if live is None else "put back")

    def sets(self) -> Iterator[Action]:
        targets = self.step.replicas
        new = self.new.set
        # Fewer first: what is given up makes room for what is asked for.
        for old in sorted(self.others, key=lambda one: targets[one.set.name] - one.set.replicas):
            if old.set.failure is not None:
                yield MarkFailed(old.set.name, None)
            if targets[old.set.name] != old.set.replicas:
                yield Scale(old.set.name, targets[old.set.name], self.step.stage.value)
        if self.fresh:
            yield Apply(self._rendered(targets[new.name]), "a new revision")
        else:
            yield from self._existing(new, targets[new.name])
        yield from self._history()

    def _existing(self, new: ReplicaSet, target: int) -> Iterator[Action]:
        live = self.snapshot.children.get(("ReplicaSet", new.name))
        if self.newly_failed is not None and new.failure is not None:
            yield MarkFailed(new.name, new.failure)
        elif self.forgiven and new.failure is not None:
            yield MarkFailed(new.name, None)
        if new.number != self.number:
            yield Renumber(new.name, self.number)
        if self.step.stage is Stage.COMPLETE and self.spec.replicas and not new.proven:
            yield MarkProven(new.name)
        # Another version's template is its own affair: rendering it again would change pods that run well.
        if new.built_by == self.version and live is not None and build.differs(self._rendered(target), live):
            yield Apply(self._rendered(target), "put back" if target == new.replicas else self.step.stage.value)
        elif target != new.replicas:
            yield Scale(new.name, target, self.step.stage.value)

    def _rendered(self, replicas: int) -> dict[str, Any]:
        return _render(self.snapshot, self.admission, self.settings, self.revision, self.number, replicas, self.version)

    def _history(self) -> Iterator[Action]:
        idle = [old for old in self.others if not old.pods and not old.set.replicas and not old.set.deleting]
        for old in idle[: max(0, len(idle) - HISTORY)]:
            yield Delete("ReplicaSet", old.set.name, f"only {HISTORY} revisions are kept")
