"""A cache that a watch has left behind is put right, and one that is right is left alone."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from plimsoll.operator import kinds, names
from plimsoll.operator.cluster import Cluster, ClusterError
from plimsoll.operator.departures import Departures
from plimsoll.operator.verify import Rounds, Verifier
from plimsoll.operator.watch_cache import Cache

MINE = {"labels": {names.MANAGED_BY: names.MANAGER, names.DEPLOYMENT: "a"}}


class World:
    def __init__(self, api: Any, cluster: Cluster, cache: Cache, metrics: Any, make: Callable[..., Any]) -> None:
        self.api, self.cache, self.make = api, cache, make
        self.meanwhile: Callable[[], None] = lambda: None
        self.departures = Departures(cluster, cache)
        self.verifier = Verifier(
            cluster, cache, ("ns",), metrics, sleep=lambda _: self.meanwhile(), departures=self.departures
        )
        self.stored: dict[str, dict[str, Any]] = {}

    def there(self, name: str, **more: Any) -> dict[str, Any]:
        """An object of the API server."""
        self.stored[name] = self.api.put(kinds.SERVICE, self.make(kinds.SERVICE, name, metadata=MINE, **more))
        self._list()
        return self.stored[name]

    def gone(self, name: str) -> None:
        del self.api.objects[kinds.SERVICE.path("ns", name)], self.stored[name]
        self._list()

    def _list(self) -> None:
        self.api.pages[kinds.SERVICE.path("ns")] = [list(self.stored.values())]

    def check(self) -> int:
        return self.verifier.check(kinds.SERVICE)

    def known(self) -> dict[str, str]:
        return {name: version for (_, name), (_, version, _) in self.cache.listed(kinds.SERVICE).items()}


@pytest.fixture
def world(api: Any, cluster: Cluster, cache: Cache, metrics: Any, make: Any) -> World:
    return World(api, cluster, cache, metrics, make)


def test_what_is_right_costs_one_listing(world: World) -> None:
    for name in ("a", "b"):
        world.cache.seen(kinds.SERVICE, "ADDED", world.there(name))
    assert world.check() == 0
    assert len(world.api.requests) == 2, "one of them lists what has lost its label"
    assert world.verifier.missed == {}


def test_missed_deletions_changes_and_arrivals_are_made_good(world: World, woken: list[Any]) -> None:
    for name in ("gone", "changed", "same"):
        world.cache.seen(kinds.SERVICE, "ADDED", world.there(name))
    world.gone("gone")
    changed, arrived = world.there("changed", spec={"x": 1}), world.there("arrived")
    woken.clear()
    assert world.check() == 3
    assert world.known() == {
        "changed": changed["metadata"]["resourceVersion"],
        "arrived": arrived["metadata"]["resourceVersion"],
        "same": world.stored["same"]["metadata"]["resourceVersion"],
    }
    assert woken == [("ns", "a")] * 3
    assert world.verifier.missed == {"Service": 1}
    assert world.check() == 0
    assert world.verifier.missed == {}


def test_a_watch_that_is_a_moment_behind_is_no_alarm(world: World) -> None:
    world.cache.seen(kinds.SERVICE, "ADDED", world.there("a"))
    late = world.there("late")
    world.meanwhile = lambda: world.cache.seen(kinds.SERVICE, "ADDED", late) and None
    assert world.check() == 0
    assert world.verifier.missed == {}


def test_one_that_lost_our_label_is_still_there_and_gets_it_back(world: World) -> None:
    world.cache.seen(kinds.SERVICE, "ADDED", world.there("a"))
    taken = world.there("a")
    del taken["metadata"]["labels"][names.MANAGED_BY]
    del world.stored["a"]
    world._list()
    assert world.check() == 0
    assert list(world.known()) == ["a"]
    [(kind, raw)] = world.departures._next() or ()
    world.departures.look(kind, raw)
    assert world.api.objects[kinds.SERVICE.path("ns", "a")]["metadata"]["labels"] == MINE["labels"]


def test_a_listing_that_takes_too_long_begins_again(world: World) -> None:
    world.cache.seen(kinds.SERVICE, "ADDED", world.there("a"))
    world.api.faults = [(410, {})]
    assert world.check() == 0


def test_a_listing_through_the_watch_is_checked_soon_and_others_in_minutes(world: World) -> None:
    world._list()
    world.check()
    checked = world.verifier._checked["Service"]
    assert not world.verifier.due(kinds.SERVICE, checked + 500)
    assert world.verifier.due(kinds.SERVICE, checked + 601)
    world.cache.relisted["Service"] = checked + 1
    assert not world.verifier.due(kinds.SERVICE, checked + 2)
    assert world.verifier.due(kinds.SERVICE, checked + 4)
    assert not world.verifier.due(kinds.POD, 0.0)


def test_what_went_while_nobody_watched_is_forgotten_at_once_and_no_fault_of_the_watch(world: World) -> None:
    for name in ("a", "gone"):
        world.cache.seen(kinds.SERVICE, "ADDED", world.there(name))
    world.check()
    world.gone("gone")
    world.cache.relisted["Service"] = world.verifier._checked["Service"] + 1e-6
    slept: list[int] = []
    world.meanwhile = lambda: slept.append(1)
    assert world.check() == 0
    assert set(world.known()) == {"a"}
    assert not slept
    assert world.verifier.missed == {}


def test_a_check_that_failed_is_due_still(world: World) -> None:
    world._list()
    world.check()
    world.cache.relisted["Service"] = world.verifier._checked["Service"] + 1.0
    later = world.verifier._checked["Service"] + 5.0
    world.api.faults = [(409, {})]
    with pytest.raises(ClusterError):
        world.check()
    assert world.verifier.due(kinds.SERVICE, later)
    world.check()


def test_a_check_that_broke_off_among_its_repairs_is_due_still(world: World) -> None:
    world.cache.seen(kinds.SERVICE, "ADDED", world.there("gone"))
    world.check()
    world.gone("gone")
    world.cache.relisted["Service"] = world.verifier._checked["Service"] + 1e-6
    later = world.verifier._checked["Service"] + 5.0
    world.api.faults = [None, (410, {})]
    with pytest.raises(ClusterError):
        world.check()
    assert set(world.known()) == {"gone"}
    assert world.verifier.due(kinds.SERVICE, later)
    world.check()
    assert world.known() == {}


def test_what_others_belong_to_is_checked_first_whatever_is_due_besides(world: World) -> None:
    order: list[str] = []
    again = [kinds.DEPLOYMENT]

    def check(kind: kinds.Kind) -> int:
        order.append(kind.name)
        world.verifier._checked[kind.name] = time.monotonic()
        if kind is kinds.SERVICE and again:
            # While others are checked, the deployments are listed anew.
            world.cache.relisted[again.pop().name] = time.monotonic() - 3.0
            world.verifier._checked["ModelDeployment"] = time.monotonic() - 9.0
        if order[-2:] == ["ModelDeployment", "Pod"]:
            rounds.stop()
        return 0

    world.verifier.check = check  # type: ignore[method-assign]
    watched = (kinds.DEPLOYMENT, kinds.SERVICE, kinds.POD)
    for kind in watched:
        world.verifier._checked[kind.name] = -1e9
    rounds = Rounds(world.verifier, lambda: watched, lambda kind: None)
    rounds.pulse.start()
    rounds.pulse.join(20)
    assert order == ["ModelDeployment", "Service", "ModelDeployment", "Pod"]


def test_the_first_listing_fills_the_cache(world: World) -> None:
    world.there("a")
    world.there("b")
    assert world.verifier.fill(kinds.SERVICE) == 2
    assert set(world.known()) == {"a", "b"}
