"""An inspect pod that cannot get to work gives way, and two that would look in different ways take turns."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from plimsoll.api.manifest import parse_spec
from plimsoll.operator import build, names
from plimsoll.operator.actions import Apply, Delete
from plimsoll.operator.snapshot import Container, Inspecting, Pod, Snapshot
from tests.support.miniature import Cluster, inspection, spec

TOLERATES = {"tolerations": [{"key": "gpu", "operator": "Exists"}]}
UNPLACED = {"node": None, "unschedulable": "0/3 nodes are available: 3 node(s) had untolerated taint {gpu: true}"}
WAITS = {"containers": (Container("inspect", reason="ImagePullBackOff", message="no such image"),)}
RUNS = {"phase": "Running", "containers": (Container("inspect", state="running"),)}
PULLS = {"containers": (Container("inspect", reason="ContainerCreating"),)}
MISSES = {**PULLS, "last_event": 'secret "hub" not found', "stuck": True}
COPIES = {"containers": (Container("copy", init=True, state="running"), Container("inspect"))}
FAILED = {"phase": "Failed", "containers": (Container("inspect", state="terminated", message="no such claim"),)}
SILENT = {"phase": "Succeeded", "containers": (Container("inspect", state="terminated", exit_code=0),)}


def looking(**pod: Any) -> Cluster:
    """A cluster whose inspect pod has been as `pod` says, and was seen so."""
    cluster = Cluster(found=None)
    cluster.act()
    becomes(cluster, **pod)
    cluster.act()
    return cluster


def becomes(cluster: Cluster, **pod: Any) -> None:
    assert cluster.inspector is not None
    cluster.inspector = replace(cluster.inspector, **pod)


def pod_of(cluster: Cluster) -> Pod:
    assert cluster.inspector is not None
    return cluster.inspector


def looks(cluster: Cluster) -> list[str]:
    """Names of the pods that this look makes and deletes."""
    found = cluster.act().actions
    made = [f"+{one.object['metadata']['name']}" for one in found if isinstance(one, Apply) and _is_pod(one)]
    return [*made, *(f"-{one.name}" for one in found if isinstance(one, Delete) and one.kind == "Pod")]


def _is_pod(one: Apply) -> bool:
    return bool(one.object["kind"] == "Pod")


@pytest.mark.parametrize("waits", [UNPLACED, WAITS, MISSES], ids=["unschedulable", "image", "secret"])
def test_a_spec_that_is_corrected_looks_anew_at_once(waits: dict[str, Any]) -> None:
    cluster = looking(**waits)
    cluster.now += 3600
    assert looks(cluster) == []
    before = pod_of(cluster)
    cluster.change(pod=TOLERATES)
    assert looks(cluster) == [f"+{before.name}-again", f"-{before.name}"]
    assert pod_of(cluster).looks_as != before.looks_as
    assert looks(cluster) == []
    cluster.found = inspection()
    cluster.settle()
    assert cluster.status["phase"] == "Ready"


def test_a_pod_that_has_just_been_made_is_left_a_moment() -> None:
    cluster = looking(**UNPLACED)
    cluster.now += 3
    cluster.change(pod=TOLERATES)
    plan = cluster.act()
    assert (plan.actions, plan.again_in) == ((), pytest.approx(7.5))
    cluster.now += 8
    assert len(looks(cluster)) == 2


@pytest.mark.parametrize("at_work", [RUNS, COPIES, PULLS], ids=["runs", "copies", "pulls"])
def test_a_pod_that_is_at_work_is_left_to_its_end(at_work: dict[str, Any]) -> None:
    cluster = looking(**at_work)
    cluster.change(pod=TOLERATES)
    cluster.now += 500
    assert looks(cluster) == []


def test_another_change_leaves_a_pod_that_waits_as_it_is() -> None:
    cluster = looking(**UNPLACED)
    cluster.change(replicas=3)
    cluster.now += 3600
    assert looks(cluster) == []


@pytest.mark.parametrize("ended", [FAILED, SILENT], ids=["failed", "silent"])
def test_a_look_that_failed_is_repeated_at_once_when_the_spec_changes_and_then_waits(ended: dict[str, Any]) -> None:
    cluster = looking(**ended)
    cluster.now += 1
    assert looks(cluster) == []
    cluster.change(replicas=3)
    assert len(looks(cluster)) == 2
    becomes(cluster, **ended)
    cluster.now += 1
    plan = cluster.act()
    assert not [one for one in plan.actions if isinstance(one, Delete)]
    assert plan.again_in == pytest.approx(19.5)


def test_a_deployment_that_is_new_waits_as_long_as_the_others() -> None:
    cluster = looking(**FAILED)
    cluster.status = {"observedGeneration": 0}
    cluster.now += 1
    assert looks(cluster) == []


def test_a_pod_that_ended_well_and_left_no_report_is_a_failure() -> None:
    cluster = looking(**SILENT)
    ready = cluster.condition("SourceReady")
    assert (ready["status"], ready["reason"]) == ("False", "Unreadable")
    assert "left no report" in ready["message"]
    assert "left no report" in cluster.status["message"]
    before = pod_of(cluster)
    cluster.now += 21
    assert looks(cluster) == [f"+{before.name}-again", f"-{before.name}"]
    # What is looked at again is still what it was found to be.
    assert "left no report" in cluster.condition("SourceReady")["message"]
    cluster.found = inspection()
    cluster.settle()
    assert cluster.status["phase"] == "Ready"


class Two:
    """Two deployments of one source, of which each would look in another way."""

    def __init__(self, **becomes: Any) -> None:
        self.users = [Cluster(found=None), Cluster(found=None, spec=spec(pod=TOLERATES))]
        self.becomes = becomes
        self.turns: list[tuple[float, int]] = []
        self.now = self.users[0].now

    def go(self, seconds: int, step: float = 1.0) -> None:
        for _ in range(int(seconds / step)):
            self.now += step
            for number in (0, 1):
                self._look(number)

    def _look(self, number: int) -> None:
        user, other = self.users[number], self.users[1 - number]
        user.now = self.now
        if any(one.startswith("+") for one in looks(user)):
            self.turns.append((self.now, number))
            becomes(user, **self.becomes)
        other.inspector = user.inspector

    @property
    def gaps(self) -> list[float]:
        return [later - at for (at, _), (later, _) in pairwise(self.turns)]


@pytest.mark.parametrize("becomes", [UNPLACED, WAITS], ids=["unschedulable", "image"])
def test_two_that_both_wait_take_turns_ever_more_rarely(becomes: dict[str, Any]) -> None:
    world = Two(**becomes)
    world.go(2 * 3600, 5.0)
    assert world.gaps[:5] == [10.0, 20.0, 40.0, 80.0, 160.0]
    assert set(world.gaps[5:]) == {300.0}
    assert [number for _, number in world.turns] == [index % 2 for index in range(len(world.turns))]


@pytest.mark.parametrize("becomes", [FAILED, SILENT], ids=["failed", "silent"])
def test_two_that_both_fail_take_turns_ever_more_rarely(becomes: dict[str, Any]) -> None:
    world = Two(**becomes)
    world.go(2 * 3600, 5.0)
    assert world.gaps == sorted(world.gaps)
    assert world.gaps[-10:] == [300.0] * 10
    assert {number for _, number in world.turns[-2:]} == {0, 1}


def test_whoever_can_look_does_though_the_other_made_a_pod_that_cannot() -> None:
    world = Two(**UNPLACED)
    world.go(9)
    assert [number for _, number in world.turns] == [0]
    world.becomes = RUNS
    world.go(600)
    assert [number for _, number in world.turns] == [0, 1]


def test_those_who_would_look_alike_wait_for_one_pod() -> None:
    world = Two(**UNPLACED)
    world.users[1].spec = spec(replicas=4)
    world.go(3600, 5.0)
    assert len(world.turns) == 1


def test_a_pod_of_an_earlier_version_gives_way_too() -> None:
    cluster = looking(**UNPLACED)
    becomes(cluster, looks_as="", patience=0.0)
    cluster.now += 9
    assert looks(cluster) == []
    cluster.now += 2
    assert len(looks(cluster)) == 2


def test_an_image_of_the_operators_own_settings_is_looked_with_anew() -> None:
    cluster = looking(**WAITS)
    cluster.settings = cluster.settings.model_copy(update={"runtime_image": "reg/right:1"})
    cluster.now += 11
    assert len(looks(cluster)) == 2


def test_names_are_two_whatever_often_is_looked_and_the_pod_says_what_it_is() -> None:
    cluster = Cluster()
    snapshot: Snapshot = cluster.snapshot()
    key = "0123456789abcdef"
    assert snapshot.inspecting is not None
    cluster.act()
    first = pod_of(cluster)
    wish = build.inspect_pod(snapshot.deployment, _parsed(), cluster.settings, False, key)
    assert wish["metadata"]["annotations"] == {names.LOOKS_AS: first.looks_as, names.PATIENCE: "10"}
    there = Pod(wish["metadata"]["name"], looks_as=first.looks_as, patience=40.0)
    again = build.inspect_pod(snapshot.deployment, _parsed(), cluster.settings, False, key, instead_of=there)
    assert again["metadata"]["name"] == f"plimsoll-inspect-{key}-again"
    assert again["metadata"]["annotations"][names.PATIENCE] == "40"
    there = Pod(again["metadata"]["name"], looks_as="another", patience=200.0)
    third = build.inspect_pod(snapshot.deployment, _parsed(), cluster.settings, False, key, instead_of=there)
    assert third["metadata"]["name"] == f"plimsoll-inspect-{key}"
    assert third["metadata"]["annotations"][names.PATIENCE] == "300"


def _parsed() -> Any:
    return parse_spec(spec())


def test_a_pod_on_its_way_out_is_left_alone() -> None:
    cluster = looking(**FAILED)
    becomes(cluster, deleting=True)
    cluster.now += 3600
    assert looks(cluster) == []
    assert isinstance(cluster.snapshot().inspecting, Inspecting)
