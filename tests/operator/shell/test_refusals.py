"""What the API server does not take, and what is said of it: once, and no more than is true."""

from typing import Any

import pytest

from plimsoll.operator import kinds
from plimsoll.operator.actions import Apply, Plan
from plimsoll.operator.cluster import Cluster, ForbiddenError
from plimsoll.operator.plan.conditions import Condition, Truth, written
from plimsoll.operator.plan.refusal import refused
from plimsoll.operator.snapshot import Deployment
from plimsoll.operator.watch_cache import Cache
from tests.operator.shell import test_job_world as jobs
from tests.operator.shell.test_reconcile import KEY, SERVICE, World

MONITOR = {**SERVICE, "apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor"}


def status(phase: str, ready: Truth, degraded: str = "", accepted: Truth = "True") -> dict[str, Any]:
    conditions = [
        Condition("Accepted", accepted, "Fits" if accepted == "True" else "DoesNotFit"),
        Condition("Ready", ready, "Serving" if ready == "True" else "NotReady", "so many of so many"),
        Condition("Degraded", "True" if degraded else "False", degraded or "AsExpected"),
    ]
    return {"observedGeneration": 1, "phase": phase, "message": "", "conditions": written(conditions, (), 1, 1e6)}


@pytest.fixture
def world(api: Any, cluster: Cluster, cache: Cache, metrics: Any, make: Any) -> World:
    return World(api, cluster, cache, metrics, make)


def stored(world: World) -> dict[str, Any]:
    found: dict[str, Any] = world.api.objects[kinds.DEPLOYMENT.path(*KEY)].get("status") or {}
    return found


def conditions(found: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {one["type"]: (one["status"], one["reason"]) for one in found["conditions"]}


def test_replicas_that_serve_are_ready_whatever_is_refused_beside_them(world: World) -> None:
    world.api.forbidden = {"podmonitors"}
    world.work(Plan(actions=(Apply(MONITOR),), status=status("Ready", "True")))
    assert conditions(stored(world)) == {
        "Accepted": ("True", "Fits"), "Ready": ("True", "Serving"), "Degraded": ("True", "Refused"),
        "Stalled": ("True", "Refused"),
    }  # fmt: skip
    assert stored(world)["phase"] == "Degraded"
    assert "podmonitors/a is forbidden" in stored(world)["message"]


def test_a_refusal_that_stays_is_told_once(world: World) -> None:
    world.api.forbidden = {"podmonitors"}
    plan = Plan(actions=(Apply(MONITOR),), status=status("Ready", "True"))
    for turn in range(5):
        world.now += 200
        writes = world.work(plan)
        events = [path for _, path in writes if path.startswith(kinds.EVENT.path("ns"))]
        assert len(events) == (3 if turn == 0 else 0), "Fits, Serving, Refused"
    assert writes == [("PATCH", kinds.POD_MONITOR.path("ns", "a"))]
    told = {one["reason"]: (one["type"], one["count"]) for one in world.api.under(kinds.EVENT.path("ns"))}
    assert told["Refused"] == ("Warning", 1)
    assert world.errors() == {"Forbidden": 5}


def test_what_is_taken_in_the_end_is_stuck_no_more(world: World) -> None:
    world.api.forbidden = {"podmonitors"}
    plan = Plan(actions=(Apply(MONITOR),), status=status("Ready", "True"))
    world.work(plan)
    world.api.forbidden = set()
    world.now += 200
    world.work(plan)
    assert stored(world)["phase"] == "Ready"
    assert conditions(stored(world))["Degraded"] == ("False", "AsExpected")
    assert "Stalled" not in conditions(stored(world))


def test_why_pods_fail_is_not_hidden_by_what_is_refused_beside_them() -> None:
    plan = Plan(status=status("Degraded", "False", "CrashLoop"))
    found = refused(plan, "quota", Deployment("ns", "a", "uid-a", 1, {}), 1e6)
    assert conditions(dict(found.status))["Degraded"] == ("True", "CrashLoop")
    assert conditions(dict(found.status))["Stalled"] == ("True", "Refused")
    later = Deployment("ns", "a", "uid-a", 1, {}, found.status)
    assert [one.reason for one in found.events if one.reason == "Refused"] == ["Refused"]
    assert refused(plan, "quota", later, 2e6).events == ()


def test_a_spec_that_is_refused_itself_goes_on_saying_so() -> None:
    plan = Plan(status=status("Refused", "False", accepted="False") | {"message": "does not fit"})
    found = refused(plan, "quota", Deployment("ns", "a", "uid-a", 1, {}), 1e6).status
    assert (found["phase"], found["message"]) == ("Refused", "does not fit")


def test_the_status_is_written_though_a_webhook_is_away(world: World) -> None:
    world.api.broken = {"services"}
    world.work(Plan(actions=(Apply(SERVICE), Apply(MONITOR)), status=status("Pending", "False")))
    assert stored(world)["phase"] == "Pending"
    assert world.errors() == {"Unavailable": 1}
    assert world.queue.get(0) is None
    world.now += 1000
    assert world.queue.get(0) == KEY


def test_nothing_else_is_tried_while_the_api_server_does_not_answer(world: World) -> None:
    world.api.faults = ["cut"] * 100
    world.work(Plan(actions=(Apply(SERVICE),), status=status("Pending", "False")))
    assert {path.partition("?")[0] for _, path in world.api.requests} == {kinds.SERVICE.path("ns", "a")}
    assert world.errors() == {"Unavailable": 1}


def test_a_job_that_may_not_be_made_is_stalled_in_words_that_its_kind_has(
    api: Any, cluster: Cluster, metrics: Any, make: Any
) -> None:
    world = jobs.World(api, cluster, Cache(lambda key: None, jobs.source_key), metrics, make)
    api.put(kinds.CLAIM, jobs.bound(make, "8Gi"))
    api.forbidden = {kinds.JOB.path("ns")}
    for _ in range(2):
        with pytest.raises(ForbiddenError):
            world.look()
    assert world.status["phase"] == "Pending"
    assert conditions(world.status)["Stalled"] == ("True", "Refused")
    assert {"Ready", "Degraded", "Reconciling"} & conditions(world.status).keys() == set()
    assert "is forbidden" in world.status["message"]
    told = [one["count"] for one in world.stored(kinds.EVENT) if one["reason"] == "Refused"]
    assert told == [1]
