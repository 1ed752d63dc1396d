"""What a pod waits for is found in its own events, and said."""

from dataclasses import replace
from typing import Any

import pytest

from plimsoll.operator import kinds
from plimsoll.operator.cluster import Cluster
from plimsoll.operator.plan import plan
from plimsoll.operator.snapshot import Container, Inspecting, Pod, Snapshot
from plimsoll.operator.waiting import Waiting, last_told
from tests.support.miniature import Cluster as Miniature

MISSING = 'MountVolume.SetUp failed for volume "keys" : secret "team-keys" not found'
CREATING = (Container("server", reason="ContainerCreating"),)


def event(message: str, at: str, *, kind: str = "Warning", reason: str = "FailedMount", **more: Any) -> dict[str, Any]:
    return {"type": kind, "reason": reason, "message": message, "lastTimestamp": f"2026-01-01T00:00:{at}Z", **more}


SCHEDULED = event("Successfully assigned", "01", kind="Normal", reason="Scheduled")
EMPTY = event("Unable to attach or mount volumes: timed out waiting for the condition", "30")
PULLING = event('Pulling image "runtime"', "20", kind="Normal", reason="Pulling")


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ([], ("", False)),
        ([SCHEDULED], ("", False)),
        ([SCHEDULED, event(MISSING, "05"), EMPTY], (MISSING, True)),
        ([EMPTY], (EMPTY["message"], True)),
        ([event(MISSING, "20"), PULLING], (PULLING["message"], False)),
        ([PULLING, event(MISSING, "21")], (MISSING, True)),
        ([PULLING, event(MISSING, "05", series={"lastObservedTime": "2026-01-01T00:00:40.1Z"})], (MISSING, True)),
    ],
)
def test_the_latest_word_counts_and_of_the_same_second_the_good_one(events: Any, told: tuple[str, bool]) -> None:
    assert last_told(events) == told
    assert last_told(events[::-1]) == told


@pytest.fixture
def waiting(api: Any, cluster: Cluster) -> Waiting:
    api.pages[kinds.EVENT.path("ns")] = [[SCHEDULED, event(MISSING, "05")]]
    return Waiting(cluster)


def stuck(miniature: Miniature, age: float) -> Snapshot:
    """Its newest pod has a node and no container yet."""
    snapshot = miniature.snapshot()
    pods = [replace(pod, ready=False, routable=False, containers=CREATING, uid="u1") for pod in snapshot.pods[-1:]]
    pods = [replace(pod, created=snapshot.now - age, node="n1") for pod in pods]
    return replace(snapshot, pods=(*snapshot.pods[:-1], *pods))


def test_a_missing_secret_is_named_and_given_up_only_where_something_else_serves(api: Any, waiting: Waiting) -> None:
    miniature = Miniature()
    miniature.settle()
    young = plan(stuck(miniature, 1.0), miniature.settings, "1")
    assert not young.needs_events
    assert young.again_in is not None
    assert young.again_in <= 5.0
    for age, fatal in ((6.0, False), (40.0, True)):
        unexplained = stuck(miniature, age)
        assert plan(unexplained, miniature.settings, "1").needs_events
        found = plan(waiting.explained(unexplained), miniature.settings, "1")
        conditions = {one["type"]: one for one in found.status["conditions"]}
        assert conditions["Ready"]["reason"] == "FailedMount"
        assert 'secret "team-keys" not found' in conditions["Ready"]["message"]
        assert ("Stalled" in conditions) is fatal
        assert found.again_in is not None
        assert 9.0 < found.again_in < 61.0
    assert len(api.requests) == 1, "what was read a moment ago is read once"
    assert "fieldSelector=involvedObject.uid%3Du1" in api.requests[0][1]


def test_the_inspect_pod_s_missing_volume_is_named_too(waiting: Waiting) -> None:
    miniature = Miniature()
    miniature.act()
    snapshot = miniature.snapshot()
    pod = Pod("look", uid="u1", node="n1", containers=CREATING, created=snapshot.now - 9)
    snapshot = replace(snapshot, inspecting=Inspecting("key", pod=pod))
    assert plan(snapshot, miniature.settings, "1").needs_events
    found = plan(waiting.explained(snapshot), miniature.settings, "1")
    assert 'secret "team-keys" not found' in found.status["message"]


def test_without_the_right_to_read_events_it_goes_on(api: Any, cluster: Cluster) -> None:
    api.faults = [(403, {})]
    miniature = Miniature()
    miniature.settle()
    snapshot = Waiting(cluster).explained(stuck(miniature, 6.0))
    assert "describe pod" in str(plan(snapshot, miniature.settings, "1").status["conditions"])


def test_pods_that_run_or_say_why_are_not_asked_about(api: Any, waiting: Waiting) -> None:
    miniature = Miniature()
    miniature.settle()
    snapshot = stuck(miniature, 60.0)
    for containers in (
        (Container("fetch", init=True, state="running"), Container("server", reason="PodInitializing")),
        (Container("server", reason="ImagePullBackOff", message="no such image"),),
    ):
        pods = tuple(replace(pod, containers=containers) for pod in snapshot.pods)
        told = replace(snapshot, pods=pods)
        assert not plan(told, miniature.settings, "1").needs_events
        assert waiting.explained(told) == told
    assert not api.requests
