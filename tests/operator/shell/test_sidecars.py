"""Containers that somebody injects, a service mesh say: pods that run once are judged by our container."""

from dataclasses import replace
from typing import Any

import pytest

from plimsoll.operator import kinds, names, parse
from plimsoll.operator.actions import Delete
from plimsoll.operator.main import source_key
from plimsoll.operator.plan import next_plan
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import Container, Pod
from plimsoll.operator.watch_cache import Cache
from tests.support.built import INSPECTION
from tests.support.job_miniature import LAYERS, JobCluster
from tests.support.miniature import spec

REPORT = str(INSPECTION.encode(), "ascii")
RUNNING = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


def ended(code: int, message: str = "") -> dict[str, Any]:
    found = {"exitCode": code, "message": message, "reason": "Error" if code else "Completed"}
    return {"terminated": {**found, "finishedAt": "2026-01-01T00:00:09Z"}}


def status(ours: Any, beside: Any, phase: str, name: str = "inspect", **more: Any) -> dict[str, Any]:
    """Sorted by name, as the kubelet writes it: `a-proxy` comes first, `z-proxy` last."""
    containers = [("a-proxy", beside), (name, ours), ("z-proxy", beside)]
    return {"phase": phase, "containerStatuses": [{"name": one, "state": state} for one, state in containers], **more}


@pytest.fixture
def looked(cache: Cache, make: Any) -> Any:
    def look(**pod: Any) -> Any:
        seen = Cache(lambda key: None, source_key)
        raw = make(kinds.DEPLOYMENT, "a", spec=spec())
        seen.seen(kinds.DEPLOYMENT, None, raw)
        key = source_key("ns", raw["spec"])
        labels = {names.SOURCE: key, names.MANAGED_BY: names.MANAGER, names.COMPONENT: "inspect"}
        seen.seen(kinds.POD, "ADDED", make(kinds.POD, "look", metadata={"labels": labels}, **pod))
        return seen.snapshot(("ns", "a"), 1.0)

    return look


@pytest.mark.parametrize(
    "found",
    [
        status(ended(0, REPORT), RUNNING, "Running"),
        status(ended(0, REPORT), ended(1, "mesh went away"), "Failed"),
        status(ended(0, REPORT), ended(137), "Failed", reason="DeadlineExceeded"),
        status(ended(0, REPORT), ended(0, "not a report"), "Succeeded"),
    ],
    ids=["a sidecar runs on", "a sidecar failed", "the deadline ended a sidecar", "a sidecar ended"],
)
def test_a_report_counts_whatever_runs_beside_it(looked: Any, found: dict[str, Any]) -> None:
    snapshot = looked(status=found)
    assert snapshot.inspecting.found == INSPECTION
    plan = next_plan(snapshot, Settings(), "1")
    assert plan.status["phase"] != "Inspecting"
    assert any("Record" in type(action).__name__ for action in plan.actions)


@pytest.mark.parametrize("phase", ["Running", "Failed"])
def test_a_source_that_cannot_be_read_is_said_in_our_containers_words(looked: Any, phase: str) -> None:
    beside = RUNNING if phase == "Running" else ended(143, "proxy is going")
    snapshot = looked(status=status(ended(1, "no such bucket"), beside, phase))
    assert snapshot.inspecting.error == "no such bucket"
    assert snapshot.inspecting.pod.ended


def test_an_init_container_that_failed_speaks_for_a_pod_that_never_began(looked: Any) -> None:
    waits = {"waiting": {"reason": "PodInitializing"}}
    injected = [{"name": "mesh-init", "state": ended(1, "iptables: permission denied")}]
    snapshot = looked(status={**status(waits, waits, "Failed"), "initContainerStatuses": injected})
    assert snapshot.inspecting.error == "iptables: permission denied"


def test_our_containers_come_before_injected_ones(make: Any) -> None:
    pod = parse.pod(make(kinds.POD, "p", status=status(RUNNING, RUNNING, "Running", "server")))
    found = [(one.name, one.ours) for one in pod.containers]
    assert found == [("server", True), ("a-proxy", False), ("z-proxy", False)]
    assert (pod.phase, pod.lingers, pod.ended) == ("Running", False, False)


def test_a_pod_whose_own_container_ended_alone_does_not_linger(make: Any) -> None:
    # The kubelet reports a container as terminated a moment before the phase of its pod.
    alone = {"phase": "Running", "containerStatuses": [{"name": "quantize", "state": ended(0)}]}
    native = [{"name": "mesh", "state": RUNNING}]
    for found in (alone, {**alone, "initContainerStatuses": native}):
        pod = parse.pod(make(kinds.POD, "p", status=found))
        assert (pod.phase, pod.lingers) == ("Succeeded", False)


def meshed(cluster: JobCluster) -> None:
    """What the kubelet and the Job controller make of a pod whose injected container runs on."""
    for at, pod in enumerate(cluster.pods):
        if pod.ended and not pod.lingers and cluster.batch is not None:
            proxy = Container("a-proxy", state="running", ours=False)
            cluster.pods[at] = replace(pod, lingers=True, containers=(*pod.containers, proxy), ended_at=cluster.now)
            cluster.batch = replace(cluster.batch, ended="", reason="", message="", ended_at=0.0)


@pytest.mark.parametrize(
    ("outcome", "condition", "reason"), [("Complete", "Complete", "Passed"), ("GateFailed", "Failed", "GateFailed")]
)
def test_a_job_ends_with_its_own_container_and_what_lingers_is_ended(outcome: str, condition: str, reason: str) -> None:
    cluster = JobCluster(outcome=outcome)
    for _ in range(40):
        cluster.act()
        if cluster.batch is None and cluster.made:
            break
        cluster.others_move() if not (cluster.pods and cluster.pods[-1].ended) else setattr(
            cluster, "now", cluster.now + 3
        )
        meshed(cluster)
    found = cluster.condition(condition)
    assert (found["status"], found["reason"]) == ("True", reason)
    assert cluster.batch is None, "the Job would be held open by its sidecar"
    assert cluster.made == 1
    cluster.act()
    assert cluster.made == 1, "a Job that has ended is not made again"


def test_a_sidecar_that_failed_beside_a_written_output_fails_no_job() -> None:
    cluster = JobCluster()
    cluster.settle(LAYERS + 12)
    assert cluster.batch is not None
    failed = Container("a-proxy", state="terminated", exit_code=1, ours=False)
    [pod] = cluster.pods
    cluster.pods = [replace(pod, lingers=True, containers=(*pod.containers, failed), ended_at=cluster.now)]
    cluster.batch = replace(cluster.batch, ended="Failed", reason="BackoffLimitExceeded")
    cluster.status = {}
    cluster.act()
    assert cluster.status["phase"] == "Complete"
    assert cluster.batch is not None


def test_a_crash_beside_a_sidecar_makes_room_for_the_next_pod() -> None:
    cluster = JobCluster()
    while cluster.reached < 2:
        cluster.act()
        cluster.others_move()
    pod: Pod = cluster.pods[-1]
    cluster._end(pod, 137, None)
    meshed(cluster)
    assert Delete not in {type(one) for one in cluster.act().actions}, "the sidecar may end by itself"
    cluster.now += 60
    [deleted] = [one for one in cluster.act().actions if isinstance(one, Delete)]
    assert (deleted.kind, deleted.name) == ("Pod", pod.name)
