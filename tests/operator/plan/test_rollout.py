"""Rollouts in a small world: ReplicaSets that make pods, a scheduler with so many devices, pods that start or fail."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from plimsoll.operator.plan.rollout import LOST, Revision, Stage, Step, Strategy, next_step
from plimsoll.operator.snapshot import Failure, Pod, ReplicaSet

NOW = 1000.0
GRACE = 30.0


@dataclass
class World:
    """Devices that this deployment may have, and everything it has."""

    devices: int
    strategy: Strategy = "Auto"
    sees_nodes: bool = True
    bad: set[str] = field(default_factory=set)
    """Revisions whose pods never become ready."""
    dead: set[str] = field(default_factory=set)
    """Pods on nodes that are gone, each with its device."""
    sets: dict[str, ReplicaSet] = field(default_factory=dict)
    pods: list[Pod] = field(default_factory=list)
    wanted: int = 1
    current: str = ""
    clock: float = NOW
    names: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def deploy(self, revision: str, wanted: int) -> None:
        self.wanted, self.current = wanted, revision
        if revision not in self.sets:
            self.sets[revision] = ReplicaSet(revision, revision, revision, 0)
        number = max(one.number for one in self.sets.values()) + 1
        self.sets[revision] = replace(self.sets[revision], number=number)
        for name, one in self.sets.items():
            if name != revision:
                self.sets[name] = replace(one, failure=None)

    def revision(self, name: str) -> Revision:
        return Revision(self.sets[name], tuple(pod for pod in self.pods if pod.owner == name))

    @property
    def others(self) -> list[Revision]:
        return [self.revision(name) for name in self.sets if name != self.current]

    @property
    def held(self) -> int:
        return sum(pod.node is not None for pod in self.pods)

    @property
    def serving(self) -> int:
        return sum(pod.ready and not pod.deleting for pod in self.pods)

    def step(self) -> Step:
        """One look of the planner, carried out."""
        new = self.revision(self.current)
        proven = any(old.set.proven for old in self.others)
        stuck = any(pod.message == "bad" for pod in new.pods)
        if stuck and not new.set.proven and proven and new.set.failure is None:
            self.sets[self.current] = replace(new.set, failure=Failure("CrashLoop", "bad", self.clock))
            new = self.revision(self.current)
        failed = new.set.failure is not None and proven and not new.set.proven
        free = self.devices - self.held - sum(pod.node is None and not pod.deleting for pod in new.pods)
        found = next_step(
            self.wanted, new, self.others, self.strategy, None, self.clock, failed=failed, may_look=self.sees_nodes
        )
        if found.needs_room:
            room = max(0, free)
            found = next_step(self.wanted, new, self.others, self.strategy, room, self.clock, failed=failed)
            assert not found.needs_room
        for name, told in found.replicas.items():
            self.sets[name] = replace(self.sets[name], replicas=told)
        if found.stage is Stage.COMPLETE and self.wanted:
            self.sets[self.current] = replace(self.sets[self.current], proven=True)
        return found

    def controllers(self) -> None:
        """ReplicaSets create and delete pods, those that are not ready first."""
        for name, one in self.sets.items():
            mine = [pod for pod in self.pods if pod.owner == name and not pod.deleting]
            for _ in range(one.replicas - len(mine)):
                self.pods.append(Pod(f"{name}-{next(self.names)}", revision=name, owner=name, created=self.clock))
            spare = sorted(mine, key=lambda pod: (pod.ready, pod.node is not None))[: max(0, len(mine) - one.replicas)]
            self.pods = [self.ending(pod) if pod in spare else pod for pod in self.pods]

    def ending(self, pod: Pod) -> Pod:
        return replace(pod, deleting=True, routable=False, ends_by=self.clock + GRACE)

    def dies(self, choice: int) -> None:
        """A node goes for good; the cluster tells its pod to end, and nobody ends it."""
        placed = [pod for pod in self.pods if pod.node and pod.name not in self.dead]
        if placed:
            pod = placed[choice % len(placed)]
            self.dead.add(pod.name)
            self.pods[self.pods.index(pod)] = replace(pod if pod.deleting else self.ending(pod), ready=False)

    def schedule(self) -> None:
        for index, pod in enumerate(self.pods):
            if pod.node is None and not pod.deleting:
                fits = self.held < self.devices
                self.pods[index] = replace(pod, node="n" if fits else None, unschedulable=None if fits else "0/1 nodes")

    def kubelet(self, choice: int) -> None:
        """One pod moves on: an ending one ends, a placed one becomes ready, or fails."""
        alive = [pod for pod in self.pods if pod.name not in self.dead]
        movable = [pod for pod in alive if pod.deleting or (pod.node and not pod.ready and not pod.message)]
        if not movable:
            return
        pod = movable[choice % len(movable)]
        if pod.deleting:
            self.pods.remove(pod)
            return
        changed = replace(pod, message="bad") if pod.revision in self.bad else replace(pod, ready=True, routable=True)
        self.pods[self.pods.index(pod)] = changed

    def settle(self, steps: int = 400) -> Step:
        found = self.step()
        for choice in range(steps):
            self.controllers()
            self.schedule()
            self.kubelet(choice)
            self.clock += 1
            found = self.step()
        return found


def running(world: World, revision: str, wanted: int) -> World:
    world.deploy(revision, wanted)
    world.settle(100)
    assert world.serving == wanted
    assert world.sets[revision].proven
    return world


def test_a_first_revision_gets_every_replica_at_once() -> None:
    world = World(devices=3)
    world.deploy("a", 3)
    world.step()
    assert world.sets["a"].replicas == 3


def test_with_a_free_device_the_new_one_serves_before_the_old_one_goes() -> None:
    world = running(World(devices=2), "a", 1)
    world.deploy("b", 1)
    least = 1
    for choice in range(60):
        world.step()
        world.controllers()
        world.schedule()
        world.kubelet(choice)
        least = min(least, world.serving)
    assert least == 1
    assert [pod.revision for pod in world.pods] == ["b"]


@pytest.mark.parametrize("sees_nodes", [True, False])
def test_without_one_the_old_one_drains_and_makes_way(sees_nodes: bool) -> None:
    world = running(World(devices=1, sees_nodes=sees_nodes), "a", 1)
    world.deploy("b", 1)
    found = world.settle()
    assert found.stage is Stage.COMPLETE
    assert [pod.revision for pod in world.pods] == ["b"]


@pytest.mark.parametrize("strategy", ["Auto", "Replace"])
def test_replacing_takes_one_wave_at_a_time(strategy: Strategy) -> None:
    world = running(World(devices=3, strategy=strategy), "a", 3)
    world.deploy("b", 3)
    least = 3
    for choice in range(120):
        assert sum(world.step().replicas.values()) <= 3
        world.controllers()
        world.schedule()
        world.kubelet(choice)
        least = min(least, world.serving)
    assert least == 2
    assert world.step().stage is Stage.COMPLETE


def test_fewer_wanted_in_the_middle_of_a_replacement_still_ends() -> None:
    world = running(World(devices=1, strategy="Replace", sees_nodes=False), "a", 1)
    world.wanted = 2
    world.deploy("b", 2)
    world.step()
    world.controllers()
    world.schedule()
    assert world.sets["b"].replicas == 1
    world.wanted = 1
    assert world.settle().stage is Stage.COMPLETE
    assert [pod.revision for pod in world.pods] == ["b"]


def test_it_is_complete_only_when_all_serve() -> None:
    loading = (Pod("a-1", owner="a", node="n"),)
    new = Revision(ReplicaSet("a", "a", "a", 1, number=1), loading)
    assert next_step(1, new, [], "Auto", None, NOW).stage is Stage.SCALING
    serving = replace(new, pods=(replace(loading[0], ready=True, routable=True),))
    assert next_step(1, serving, [], "Auto", None, NOW).stage is Stage.COMPLETE


def test_pods_that_only_end_keep_nothing_from_being_complete() -> None:
    serves = Pod("a-1", owner="a", ready=True, routable=True, node="n")
    ends = Pod("a-2", owner="a", ready=True, node="n", deleting=True)
    drains = Pod("b-1", owner="b", ready=True, node="n", deleting=True)
    new = Revision(ReplicaSet("a", "a", "a", 1, number=2), (serves, ends))
    old = Revision(ReplicaSet("b", "b", "b", 0, number=1, proven=True), (drains,))
    assert next_step(1, new, [old], "Auto", None, NOW).stage is Stage.COMPLETE
    spare = replace(new, pods=(serves, replace(ends, deleting=False)))
    assert next_step(1, spare, [old], "Auto", None, NOW).stage is Stage.SCALING


def test_surge_waits_for_a_device_and_never_drains_first() -> None:
    world = running(World(devices=2, strategy="Surge"), "a", 2)
    world.deploy("b", 2)
    found = world.settle()
    assert found.stage is Stage.WAITING
    assert world.serving == 2
    world.devices = 3
    assert world.settle().stage is Stage.COMPLETE


def test_a_failing_revision_stops_and_the_old_one_serves_on() -> None:
    world = running(World(devices=4, bad={"b"}), "a", 3)
    world.deploy("b", 3)
    found = world.settle()
    assert found.stage is Stage.FAILED
    assert world.sets["a"].replicas == 3
    assert world.sets["b"].replicas == 0
    assert world.serving == 3


def test_a_failing_revision_gives_the_only_device_back() -> None:
    world = running(World(devices=1, bad={"b"}), "a", 1)
    world.deploy("b", 1)
    found = world.settle()
    assert found.stage is Stage.FAILED
    assert [(pod.revision, pod.ready) for pod in world.pods] == [("a", True)]


def test_a_failed_revision_goes_back_to_the_one_that_served_last() -> None:
    world = running(World(devices=1, bad={"c"}), "a", 1)
    running(world, "b", 1)
    running(world, "a", 1)
    world.deploy("c", 1)
    world.settle()
    assert [pod.revision for pod in world.pods] == ["a"]


def test_what_serves_goes_on_where_a_third_change_fails_before_the_second_was_over() -> None:
    one = Pod("c-1", owner="c", ready=True, routable=True, node="n")
    others = [
        Revision(ReplicaSet("a", "a", "a", 0, number=1, proven=True), ()),
        Revision(ReplicaSet("c", "c", "c", 1, number=2), (one,)),
    ]
    new = Revision(ReplicaSet("b", "b", "b", 1, number=3))
    assert next_step(1, new, others, "Surge", None, NOW, failed=True).replicas == {"a": 0, "c": 1, "b": 0}
    assert next_step(3, new, others, "Surge", None, NOW, failed=True).replicas == {"a": 2, "c": 1, "b": 0}


def test_a_quota_that_refuses_pods_counts_as_no_room() -> None:
    old = Revision(
        ReplicaSet("a", "a", "a", 1, number=1, proven=True),
        (Pod("a-1", owner="a", ready=True, routable=True, node="n"),),
    )
    new = Revision(ReplicaSet("b", "b", "b", 1, number=2, blocked="exceeded quota"))
    found = next_step(1, new, [old], "Auto", 5, NOW)
    assert found.replicas == {"a": 0, "b": 1}


def test_a_scheduler_that_says_no_for_long_is_believed_over_the_count_of_devices() -> None:
    old = Revision(
        ReplicaSet("a", "a", "a", 1, number=1, proven=True),
        (Pod("a-1", owner="a", ready=True, routable=True, node="n"),),
    )
    waiting = Pod("b-1", owner="b", unschedulable="volume node affinity conflict", created=NOW - 31)
    new = Revision(ReplicaSet("b", "b", "b", 1, number=2), (waiting,))
    assert next_step(1, new, [old], "Auto", 5, NOW).replicas == {"a": 0, "b": 1}
    young = Revision(new.set, (replace(waiting, created=NOW - 5),))
    assert next_step(1, young, [old], "Auto", 5, NOW).replicas == {"a": 1, "b": 1}


@pytest.mark.parametrize("strategy", ["Auto", "Replace", "Surge"])
def test_a_pod_that_nobody_ends_holds_a_rollout_up_for_its_time_and_no_longer(strategy: Strategy) -> None:
    world = running(World(devices=5, strategy=strategy), "a", 3)
    world.dies(0)
    world.controllers()
    world.schedule()
    world.kubelet(0)
    assert world.serving == 3
    world.deploy("b", 3)
    started = world.clock
    if strategy != "Surge":
        before = world.step()
        assert (before.replicas, before.needs_room) == ({"a": 3, "b": 0}, False), "it may end yet, and make way"
    world.clock = started + GRACE + LOST
    if strategy != "Surge":
        assert world.step().replicas == {"a": 3, "b": 0}
    world.clock += 1
    assert world.settle().stage is Stage.COMPLETE
    assert {pod.revision for pod in world.pods if pod.name not in world.dead} == {"b"}


def test_the_device_of_a_pod_that_nobody_ends_is_not_counted_as_free() -> None:
    world = running(World(devices=2), "a", 1)
    world.dies(0)
    world.controllers()
    world.schedule()
    world.kubelet(0)
    assert (world.serving, world.held) == (1, 2)
    world.deploy("b", 1)
    world.clock += GRACE + LOST + 1
    assert world.step().replicas == {"a": 0, "b": 0}, "the only device that works is made free first"
    assert world.settle().stage is Stage.COMPLETE


def test_what_serves_is_kept_before_what_only_may() -> None:
    """Seen in a third change before the first was over: the pods of one revision serve, another's wait for a place."""
    one = Pod("a-1", owner="a", ready=True, routable=True, node="n")
    waiting = Pod("a-2", owner="a", unschedulable="0/1 nodes")
    other = Pod("c-1", owner="c", ready=True, routable=True, node="n")
    others = [
        Revision(ReplicaSet("a", "a", "a", 2, number=3, proven=True), (one, waiting)),
        Revision(ReplicaSet("c", "c", "c", 1, number=2), (other,)),
    ]
    new = Revision(ReplicaSet("b", "b", "b", 0, number=4))
    told = next_step(2, new, others, "Surge", None, NOW).replicas
    assert (told["a"], told["c"]) == (1, 1)
