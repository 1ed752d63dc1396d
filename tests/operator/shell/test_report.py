"""A status is written where it differs: at once where somebody may wait for it, else not all the time."""

from typing import Any

import pytest

from plimsoll.operator import kinds
from plimsoll.operator.cluster import Cluster, NotFoundError
from plimsoll.operator.report import WORDS_SECONDS, Reporter
from plimsoll.operator.watch_cache import Cache

KEY = ("ns", "a")


def status(message: str, ready: str = "False", reason: str = "NotReady", generation: int = 1) -> dict[str, Any]:
    condition = {
        "type": "Ready", "status": ready, "reason": reason, "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    return {"observedGeneration": generation, "phase": "Pending", "message": message, "conditions": [condition]}


class World:
    """An API server with one deployment, and a reporter whose time a test sets."""

    def __init__(self, api: Any, cluster: Cluster, cache: Cache, metrics: Any, make: Any) -> None:
        self.api, self.cache, self.now = api, cache, 0.0
        self.reporter = Reporter(cluster, cache, metrics, clock=lambda: self.now)
        cache.seen(kinds.DEPLOYMENT, None, api.put(kinds.DEPLOYMENT, make(kinds.DEPLOYMENT, "a", spec={})))

    def report(self, wanted: dict[str, Any]) -> float | None:
        found = self.cache.snapshot(KEY, 0.0)
        assert found is not None
        return self.reporter.report(found.deployment, wanted)

    @property
    def message(self) -> str:
        return str(self.api.objects[kinds.DEPLOYMENT.path(*KEY)]["status"]["message"])


@pytest.fixture
def world(api: Any, cluster: Cluster, cache: Cache, metrics: Any, make: Any) -> World:
    return World(api, cluster, cache, metrics, make)


def test_words_alone_wait_for_more_of_them(world: World) -> None:
    assert world.report(status("pods are about to be created")) is None
    world.now += 0.5
    assert world.report(status("pod a-1 waits for a node")) == pytest.approx(WORDS_SECONDS - 0.5)
    assert world.report(status("pod a-1 starts")) == pytest.approx(WORDS_SECONDS - 0.5)
    assert world.message == "pods are about to be created"
    world.now += WORDS_SECONDS
    assert world.report(status("pod a-1 is loading")) is None
    assert world.message == "pod a-1 is loading"


@pytest.mark.parametrize(
    "turned",
    [status("now", "True"), status("now", reason="CrashLoop"), status("now", generation=2),
     {**status("now"), "phase": "Loading"}, {**status("now"), "conditions": []}],
)  # fmt: skip
def test_what_somebody_may_wait_for_is_written_at_once(world: World, turned: dict[str, Any]) -> None:
    world.report(status("soon"))
    assert world.report(turned) is None
    assert world.message == "now"


def test_what_reads_so_already_is_neither_written_nor_waited_for(world: World) -> None:
    world.report(status("soon"))
    written = len(world.api.requests)
    assert world.report(status("soon")) is None
    assert len(world.api.requests) == written


def test_of_a_deployment_made_again_nothing_is_remembered(world: World) -> None:
    world.report(status("soon"))
    world.reporter.forget(KEY)
    assert world.report(status("now")) is None
    assert world.message == "now"


def test_one_that_is_gone_cannot_be_reported_on(world: World) -> None:
    del world.api.objects[kinds.DEPLOYMENT.path(*KEY)]
    with pytest.raises(NotFoundError):
        world.report(status("soon"))
