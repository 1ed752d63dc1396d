"""Pods that are there and are no replicas: ended ones that nobody takes away, ones on a dead node that nobody ends."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from plimsoll.api.job_progress import JobProgress
from plimsoll.operator.actions import Event
from plimsoll.operator.plan.rollout import LOST
from plimsoll.operator.plan.trouble import creating, troubles
from plimsoll.operator.snapshot import Container, Page, Pod
from tests.support.job_miniature import LAYERS, JobCluster
from tests.support.miniature import Cluster, spec

#: What a pod said before it was evicted.
PAGE = Page(1.0, "ready", {"load": {"bytes": 5, "seconds": 9.0}}, {"weights": 7}, 5, 2, 0.9)


def serving(replicas: int, **changes: object) -> Cluster:
    cluster = Cluster(spec=spec(replicas=replicas, **changes), devices=8)
    cluster.settle(20)
    assert cluster.status["phase"] == "Ready"
    return cluster


def evicted(cluster: Cluster, ago: float, **changes: object) -> Pod:
    """A pod of the one revision, as the kubelet leaves it behind."""
    [owner] = {pod.owner for pod in cluster.pods} or {one.uid for one in cluster.sets.values()}
    pod = Pod(
        "demo-evicted", uid="e", owner=owner, phase="Failed", node="n1", page=PAGE, created=cluster.now - ago - 9000,
        ended_at=cluster.now - ago, message="Evicted: The node was low on resource: memory.",
    )  # fmt: skip
    pod = replace(pod, **changes)  # type: ignore[arg-type]
    cluster.pods.insert(0, pod)
    return pod


def warnings(events: Sequence[Event]) -> list[str]:
    return [f"{event.reason}: {event.message}" for event in events if event.type == "Warning"]


@pytest.mark.parametrize("ended", ["Failed", "Succeeded"])
def test_a_pod_that_ended_and_was_replaced_is_in_nothing_that_is_said(ended: str) -> None:
    cluster = serving(1)
    cluster.act()
    before = cluster.status
    evicted(cluster, 3600, phase=ended)
    cluster.act()
    assert cluster.status == before
    assert not {"load", "startup", "observed"} & set(before)


@pytest.mark.parametrize(("before", "after", "ago"), [(1, 2, 7200), (1, 2, 10), (0, 1, 7200)])
def test_more_replicas_beside_an_evicted_pod_that_was_replaced_are_an_ordinary_change(
    before: int, after: int, ago: float
) -> None:
    cluster = serving(1)
    if not before:
        cluster.change(replicas=0)
        cluster.settle(20)
    evicted(cluster, ago)
    if before:
        cluster.pods[1] = replace(cluster.pods[1], created=cluster.now - ago + 1)
    cluster.change(replicas=after)
    for choice in range(20):
        found = cluster.act()
        said = [one["message"] for one in cluster.status["conditions"]]
        assert not any("demo-evicted" in text for text in said), said
        assert cluster.condition("Degraded")["status"] == "False"
        assert not [text for text in warnings(found.events) if "Evicted" in text]
        if choice:
            # A look may come before the ReplicaSet's controller has moved.
            cluster.others_move(choice)
    assert cluster.status["phase"] == "Ready"


def test_an_eviction_says_so_until_another_pod_is_there() -> None:
    cluster = serving(1)
    [pod] = cluster.pods
    cluster.pods = [replace(pod, phase="Failed", ready=False, routable=False, page=PAGE, ended_at=cluster.now,
                            message="Evicted: The node was low on resource: memory.")]  # fmt: skip
    found = cluster.act()
    assert cluster.condition("Ready")["reason"] == "Evicted"
    assert "low on resource" in cluster.condition("Degraded")["message"]
    assert "Pods are about to be created" in cluster.condition("Progressing")["message"]
    assert warnings(found.events)
    assert not {"load", "startup", "observed"} & set(cluster.status), "what it said was before"
    evictee = cluster.pods[0]
    cluster.pods.append(Pod("demo-next", revision=pod.revision, owner=pod.owner, created=cluster.now, node="n1"))
    cluster.act()
    assert cluster.condition("Ready")["reason"] == "NotReady"
    assert cluster.condition("Degraded")["status"] == "False"
    assert "pod demo-next starts" in cluster.condition("Ready")["message"]
    assert cluster.pods[0] is evictee


def test_an_eviction_is_not_missed_where_fewer_are_wanted_since() -> None:
    cluster = serving(2)
    cluster.pods[1] = replace(cluster.pods[1], ready=False, routable=False)
    cluster.pods[0] = replace(cluster.pods[0], phase="Failed", ready=False, routable=False, ended_at=cluster.now)
    cluster.act()
    assert cluster.condition("Ready")["reason"] == "Evicted"
    cluster.change(replicas=1)
    cluster.act()
    cluster.act()
    assert cluster.condition("Ready")["reason"] == "NotReady"


def test_a_pod_that_was_evicted_while_it_loaded_loads_no_more() -> None:
    cluster = Cluster()
    while not cluster.pods:
        cluster.act()
        cluster.others_move()
    page = replace(PAGE, phase="loading")
    cluster.pods[0] = replace(cluster.pods[0], ready=False, routable=False, page=page)
    cluster.act()
    assert cluster.status["phase"] == "Loading"
    cluster.pods[0] = replace(cluster.pods[0], phase="Failed", ended_at=cluster.now)
    cluster.act()
    assert cluster.condition("Ready")["reason"] == "Evicted"
    assert cluster.status["phase"] == "Pending"


def test_an_eviction_whose_replacement_is_refused_goes_on_being_said() -> None:
    cluster = serving(1)
    [pod] = cluster.pods
    cluster.pods = [replace(pod, phase="Failed", ready=False, routable=False, ended_at=cluster.now, message="Evicted")]
    for name, one in cluster.sets.items():
        cluster.sets[name] = replace(one, blocked="exceeded quota")
    cluster.now += 7200
    cluster.act()
    assert cluster.condition("Ready")["reason"] == "PodsRefused"
    assert cluster.condition("Degraded")["reason"] == "Evicted"


def test_a_pod_that_ended_well_is_no_trouble_and_nothing_is_asked_of_one_that_ended() -> None:
    done = Pod("demo-1", phase="Succeeded", node="n1")
    assert troubles([done], 600.0, 1e6) == ()
    never_began = Container("server", reason="ContainerCreating")
    assert creating(Pod("demo-2", node="n1", containers=(never_began,)))
    assert not creating(Pod("demo-2", phase="Failed", node="n1", containers=(never_began,)))


@pytest.mark.parametrize("strategy", ["Auto", "Replace"])
def test_a_rollout_beside_a_pod_that_nobody_ends_looks_again_when_it_may_go_on(strategy: str) -> None:
    cluster = serving(3, rollout={"strategy": strategy})
    ends_by = cluster.now + 130
    cluster.pods.append(
        Pod("dead", owner=cluster.pods[0].owner, node="gone", phase="Running", deleting=True, ends_by=ends_by)
    )
    cluster.act()
    cluster.change(context={"maxLength": 1024})
    found = cluster.act()
    assert cluster.condition("Progressing")["reason"] == "Replacing"
    assert "no device is free" not in cluster.condition("Progressing")["message"].lower(), "nobody has looked"
    assert sorted(one.replicas for one in cluster.sets.values()) == [0, 3]
    assert found.again_in is not None
    assert found.again_in <= 130 + LOST + 1
    cluster.now = ends_by + LOST + 0.5
    cluster.act()
    assert sorted(one.replicas for one in cluster.sets.values()) == ([1, 3] if strategy == "Auto" else [0, 2])


def test_that_no_device_is_free_is_said_where_room_was_looked_for() -> None:
    cluster = serving(3)
    cluster.devices = 3
    cluster.change(context={"maxLength": 1024})
    cluster.act()
    assert cluster.condition("Progressing")["message"].startswith("No device is free for one more replica")
    cluster = serving(3, rollout={"strategy": "Replace"})
    cluster.change(context={"maxLength": 1024})
    cluster.act()
    assert cluster.condition("Progressing")["message"].startswith("Old replicas are drained and replaced in turn")


@pytest.mark.parametrize("read", [True, False])
def test_a_jobs_pod_that_is_ending_is_named_and_keeps_what_was_reached(read: bool) -> None:
    cluster = JobCluster()
    while cluster.reached < 2:
        cluster.act()
        cluster.others_move()
    cluster.act()
    reached = cluster.status["progress"]
    assert "eta" in reached
    # A pod on its way out is not asked, so that an operator that starts now has no page of it.
    cluster.pods[-1] = replace(cluster.pods[-1], deleting=True, **({} if read else {"progress": None}))
    name, events = cluster.pods[-1].name, len(cluster.events)
    for _ in range(3):
        cluster.now += 3600
        cluster.act()
    assert cluster.condition("Complete")["reason"] == "Interrupted"
    said = f"pod {name} is ending on node n1; the next one starts once it is gone"
    assert cluster.condition("Complete")["message"] == said
    assert cluster.status["message"] == f"Interrupted: {said}"
    assert cluster.status["progress"] == {key: value for key, value in reached.items() if key != "eta"}
    assert cluster.events[events:] == ["Normal Interrupted"]
    cluster.pods.pop()
    cluster.settle()
    assert (cluster.status["phase"], cluster.made) == ("Complete", 1)


def test_what_a_jobs_pod_that_stays_says_counts_beside_one_that_ends() -> None:
    cluster = JobCluster()
    while cluster.reached < 2:
        cluster.act()
        cluster.others_move()
    cluster.pods.append(replace(cluster.pods[-1], name="left", uid="left", deleting=True))
    cluster.act()
    assert cluster.condition("Complete")["reason"] == "Quantizing"
    assert "eta" in cluster.status["progress"]


def test_a_pod_that_finds_other_files_says_so_at_once() -> None:
    cluster = serving(1)
    cluster.change(replicas=2)
    cluster.settle(3)
    found = "SourceChanged: /models: the files were replaced since they were inspected. Put the old files back"
    for at, pod in enumerate(cluster.pods):
        if at:
            words = Container("server", state="terminated", exit_code=1, message=f"the engine: {found}")
            cluster.pods[at] = replace(pod, ready=False, routable=False, page=None, containers=(words,))
    cluster.act()
    conditions = {one["type"]: one for one in cluster.status["conditions"]}
    for kind in ("Ready", "Degraded", "Stalled"):
        assert conditions[kind]["reason"] == "SourceChanged"
        assert "the files were replaced" in conditions[kind]["message"]
    assert conditions["Degraded"]["status"] == "True"


def test_an_attempt_that_has_only_begun_does_not_take_progress_back() -> None:
    cluster = JobCluster()
    while cluster.reached < 2:
        cluster.act()
        cluster.others_move()
    cluster.act()
    before = cluster.status["progress"]
    assert before["percent"] > 0
    pod = cluster.pods[-1]
    kept = before["percent"]
    for phase, layer, percent, shown in (
        ("Preparing", 0, 0.0, kept), ("Quantizing", 2, kept - 1.0, kept), ("Quantizing", 0, 1.0, 1),
    ):  # fmt: skip
        said = JobProgress(phase=phase, percent=percent, of=LAYERS, layer=layer)
        cluster.pods[-1] = replace(pod, progress=said)
        cluster.act()
        assert cluster.status["progress"]["percent"] == shown
