"""Inspect pods against an API server: one gives way to another, and of two the newer one counts."""

import copy
from typing import Any

import pytest

from plimsoll.operator import kinds, names
from plimsoll.operator.cluster import Cluster
from plimsoll.operator.events import Events
from plimsoll.operator.main import source_key
from plimsoll.operator.plan import next_plan
from plimsoll.operator.reconcile import Reconciler
from plimsoll.operator.settings import Settings
from plimsoll.operator.usage import Usage
from plimsoll.operator.watch_cache import Cache
from plimsoll.operator.workqueue import WorkQueue
from tests.support.built import INSPECTION
from tests.support.miniature import spec

KEY = ("ns", "a")


class World:
    def __init__(self, api: Any, cluster: Cluster, metrics: Any, make: Any) -> None:
        self.api, self.make, self.cache = api, make, Cache(lambda key: None, source_key)
        self.reconciler = Reconciler(
            cluster,
            self.cache,
            WorkQueue(metrics),
            Settings(),
            metrics,
            next_plan,
            Usage(cluster),
            Events(cluster).emit,
        )
        self.wish(1)

    def wish(self, generation: int, **changes: Any) -> None:
        raw = self.make(kinds.DEPLOYMENT, "a", spec=spec(**changes), metadata={"generation": generation})
        raw["status"] = self.api.objects.get(kinds.DEPLOYMENT.path(*KEY), {}).get("status", {})
        self.cache.seen(kinds.DEPLOYMENT, None, self.api.put(kinds.DEPLOYMENT, raw))

    def look(self) -> list[str]:
        """Writes of pods that one look makes."""
        before = len(self.api.requests)
        self.reconciler.reconcile(KEY)
        told = [(verb, path.partition("?")[0]) for verb, path in self.api.requests[before:] if "/pods" in path]
        return [f"{verb} {path.rpartition('/')[2]}" for verb, path in told]

    def pods(self) -> list[dict[str, Any]]:
        return [copy.deepcopy(one) for one in self.api.under(f"{kinds.POD.path('ns')}/")]

    def told(self, pod: dict[str, Any], event: str | None = None, **status: Any) -> None:
        """The watch tells of a pod."""
        raw = self.api.put(kinds.POD, {**pod, "status": status}) if event is None else pod
        self.cache.seen(kinds.POD, event, raw)


@pytest.fixture
def world(api: Any, cluster: Cluster, metrics: Any, make: Any) -> World:
    return World(api, cluster, metrics, make)


def test_a_corrected_spec_makes_another_pod_and_deletes_the_stuck_one(world: World) -> None:
    assert world.look() == ["POST pods"]
    (stuck,) = world.pods()
    name = stuck["metadata"]["name"]
    assert set(stuck["metadata"]["annotations"]) == {names.LOOKS_AS, names.PATIENCE}
    stuck["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    unplaced = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "untolerated taint"}
    world.told(stuck, phase="Pending", conditions=[unplaced])
    assert world.look() == []
    world.wish(2, pod={"tolerations": [{"operator": "Exists"}]})
    assert world.look() == ["POST pods", f"DELETE {name}"]
    (made,) = world.pods()
    assert made["metadata"]["name"] == f"{name}-again"
    assert made["spec"]["tolerations"] == [{"operator": "Exists"}]
    made["metadata"]["creationTimestamp"] = "2026-01-01T01:00:00Z"
    world.told(made, phase="Pending")
    # The watch tells of the end of the old one a moment later, or never.
    assert world.look() == []
    world.told(stuck, "DELETED")
    assert world.look() == []
    report = {"exitCode": 0, "message": str(INSPECTION.encode(), "ascii")}
    world.told(made, phase="Succeeded", containerStatuses=[{"name": "inspect", "state": {"terminated": report}}])
    assert world.look() == [f"DELETE {name}-again"]
    assert world.pods() == []


def test_an_ended_pod_without_a_report_is_said_to_be_unreadable(world: World) -> None:
    world.look()
    (silent,) = world.pods()
    ended = [{"name": "inspect", "state": {"terminated": {"exitCode": 0, "message": "not a report"}}}]
    world.told(silent, phase="Succeeded", containerStatuses=ended)
    world.look()
    status = world.api.objects[kinds.DEPLOYMENT.path(*KEY)]["status"]
    ready = next(one for one in status["conditions"] if one["type"] == "SourceReady")
    assert (ready["reason"], "left no report" in ready["message"]) == ("Unreadable", True)
