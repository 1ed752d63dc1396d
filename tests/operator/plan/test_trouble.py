"""Pods that served and do no more: since when, why in the container's and the node's words, and what happens next."""

from dataclasses import replace
from typing import Any

import pytest

from plimsoll.operator import parse
from plimsoll.operator.plan.exits import ended
from plimsoll.operator.plan.trouble import LONG_RUN, deadline_in, troubles
from plimsoll.operator.shape import timestamp
from plimsoll.operator.snapshot import Container, Node, Page, Pod
from tests.support.miniature import GIB, Cluster, spec

NOW, DEADLINE = 2_000_000.0, 600.0
SERVED = Page(NOW - 665, "ready")
HERE = Node("n1", allocatable={"cpu": 8000, "memory": 16 * GIB, "pods": 110})
LOST = replace(HERE, usable=False, not_ready="Kubelet stopped posting node status.", not_ready_at=1_785_585_600.0)


def restarted(code: int = 139, reason: str = "Error", **more: Any) -> Container:
    """Ran for ten minutes, ended, and runs again since five seconds."""
    found: dict[str, Any] = {"state": "running", "restarts": 1, "last_exit_code": code, "last_reason": reason,
                             "last_message": "the last words", "last_ran": 660.0, "moved_at": NOW - 5}  # fmt: skip
    return Container("server", **{**found, **more})


def pod(*containers: Container, **more: Any) -> Pod:
    found: dict[str, Any] = {"node": "n1", "phase": "Running", "created": NOW - 700, "page": SERVED}
    return Pod("demo-1", containers=containers, **{**found, **more})


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (137, "OOMKilled", "137 (OOMKilled)"), (137, "Error", "137 (SIGKILL, killed from outside"),
        (139, "Error", "139 (SIGSEGV, a fault in native code)"), (132, "Error", "132 (SIGILL, an instruction"),
        (134, "Error", "134 (SIGABRT, "), (143, "Error", "143 (SIGTERM, "), (127, "Error", "127 (its command is not"),
        (1, "Error", "exited with 1 after"), (255, "Error", "exited with 255 after"), (136, "Error", "136 (SIGFPE)"),
        (0, "Completed", "0 (though it should run on)"),
    ],
)  # fmt: skip
def test_a_container_that_restarts_after_ten_minutes_is_no_stall_and_says_how_it_ended(
    code: int, reason: str, words: str
) -> None:
    [found] = troubles([pod(restarted(code, reason))], DEADLINE, NOW)
    assert found.reason == ("OutOfMemory" if reason == "OOMKilled" else "Restarted")
    assert not found.fatal
    assert words in found.message
    assert "after 11 minutes, 1 restart" in found.message
    assert "the last words" in found.message


def test_the_deadline_counts_from_the_restart_and_its_end_names_it() -> None:
    again = pod(restarted(), page=replace(SERVED, phase="loading"))
    assert deadline_in([again], DEADLINE, NOW) == DEADLINE - 5
    assert [one.reason for one in troubles([again], DEADLINE, NOW + DEADLINE - 10)] == ["Restarted"]
    [late] = troubles([again], DEADLINE, NOW + DEADLINE)
    assert (late.reason, late.fatal) == ("Stalled", True)
    assert "nothing has moved for 605 s" in late.message
    assert "server exited with 139 (SIGSEGV" in late.message
    assert "the last words" in late.message


def test_the_deadline_counts_from_when_readiness_was_lost() -> None:
    hung = pod(Container("server", state="running", moved_at=NOW - 700), unready_at=NOW - 20, unready="not [server]")
    [found] = troubles([hung], DEADLINE, NOW)
    assert (found.reason, found.fatal) == ("Unready", False)
    assert "not [server]" in found.message
    assert [one.reason for one in troubles([hung], DEADLINE, NOW + DEADLINE)] == ["Stalled"]


@pytest.mark.parametrize(("ran", "fatal"), [(5.0, True), (LONG_RUN, False)])
def test_many_restarts_are_a_loop_only_where_each_run_is_short(ran: float, fatal: bool) -> None:
    for reason in ("Error", "OOMKilled"):
        [found] = troubles([pod(restarted(137, reason, restarts=7, last_ran=ran))], DEADLINE, NOW)
        assert found.fatal is fatal


def test_a_server_that_ends_by_itself_again_and_again_is_named() -> None:
    waits = replace(restarted(0, "Completed", restarts=2), state="waiting", reason="CrashLoopBackOff")
    [found] = troubles([pod(waits)], DEADLINE, NOW)
    assert (found.reason, found.fatal) == ("CrashLoop", True)
    assert "exited with 0 (though it should run on)" in found.message


def test_a_container_that_never_ended_says_nothing() -> None:
    assert ended(Container("server", state="running")) is None


def test_times_are_read_from_a_pod(make_raw: dict[str, Any]) -> None:
    found = parse.pod(make_raw)
    assert found.unready_at == timestamp("2026-01-01T00:20:00Z")
    assert found.unready == "containers with unready status: [server]"
    [server] = found.containers
    assert (server.last_ran, server.moved_at) == (1140.0, timestamp("2026-01-01T00:20:05Z"))
    make_raw["status"]["conditions"][1]["lastTransitionTime"] = "2026-01-01T00:00:02Z"
    assert parse.pod(make_raw).unready_at == 0.0, "it was never ready"


@pytest.fixture
def make_raw() -> dict[str, Any]:
    """A pod whose container restarted after 19 minutes."""
    return {
        "metadata": {"name": "a"},
        "status": {
            "phase": "Running",
            "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                {"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:20:00Z",
                 "message": "containers with unready status: [server]"},
            ],
            "containerStatuses": [{
                "name": "server", "restartCount": 1, "state": {"running": {"startedAt": "2026-01-01T00:20:05Z"}},
                "lastState": {"terminated": {"exitCode": 139, "startedAt": "2026-01-01T00:01:00Z",
                                             "finishedAt": "2026-01-01T00:20:00Z"}},
            }],
        },
    }  # fmt: skip


def test_a_node_that_is_not_ready_is_read_with_its_words() -> None:
    said = {"type": "Ready", "status": "Unknown", "message": "Kubelet stopped posting node status.",
            "lastTransitionTime": "2026-08-01T12:00:00Z"}  # fmt: skip
    found = parse.node({"metadata": {"name": "n1"}, "status": {"conditions": [said]}})
    assert (found.usable, found.not_ready, found.not_ready_at) == (False, LOST.not_ready, 1_785_585_600.0)
    said["status"] = "True"
    found = parse.node({"metadata": {"name": "n1"}, "status": {"conditions": [said]}})
    assert (found.usable, found.not_ready) == (True, "")


def serving(**changes: Any) -> Cluster:
    cluster = Cluster(spec=spec(**changes), nodes=(HERE,))
    cluster.settle(25)
    assert cluster.condition("Ready")["status"] == "True"
    return cluster


def test_a_lost_node_is_named_in_every_condition_with_what_happens_next() -> None:
    cluster = serving()
    cluster.pods = [replace(one, ready=False, routable=False, unready_at=cluster.now) for one in cluster.pods]
    cluster.nodes = (LOST,)
    cluster.act()
    assert cluster.status["phase"] == "Degraded"
    for kind in ("Ready", "Degraded"):
        found = cluster.condition(kind)
        assert found["reason"] == "NodeNotReady"
        assert "its node n1 is NotReady since 2026-08-01T12:00:00Z (Kubelet stopped posting" in found["message"]
        assert "the cluster deletes the pod, and another replica starts" in found["message"]
    assert "n1" in cluster.status["message"]
    assert "node n1 is NotReady" in cluster.condition("Progressing")["message"]
    # Five minutes later: deleted, its kubelet does not answer, and there is no other node.
    cluster.pods = [replace(one, deleting=True, ends_by=cluster.now) for one in cluster.pods]
    cluster.act()
    assert "stays until the node is back or its Node object is deleted" in cluster.condition("Ready")["message"]


def test_what_has_begun_elsewhere_is_told_of_instead_of_the_lost_node() -> None:
    gone = pod(deleting=True)
    assert [one.reason for one in troubles([gone], DEADLINE, NOW, [LOST])] == ["NodeNotReady"]
    next_one = Pod("demo-2", node="n2", created=NOW, phase="Running")
    assert troubles([gone, next_one], DEADLINE, NOW, [LOST, replace(HERE, name="n2")]) == ()


def test_a_pod_that_has_lost_readiness_is_not_pending() -> None:
    cluster = serving()
    cluster.pods = [
        replace(one, ready=False, routable=False, unready_at=cluster.now, page=replace(SERVED, moved_at=cluster.now))
        for one in cluster.pods
    ]
    cluster.act()
    assert (cluster.status["phase"], cluster.condition("Degraded")["reason"]) == ("Degraded", "Unready")
    assert cluster.condition("Ready")["status"] == "False"
