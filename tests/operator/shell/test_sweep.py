"""Nothing is left behind, nothing in use is taken away."""

from collections.abc import Callable
from typing import Any

import pytest

from plimsoll.operator import kinds, names
from plimsoll.operator.cluster import Cluster
from plimsoll.operator.sweep import KEEP_RECORDS_SECONDS, Sweeper
from plimsoll.operator.watch_cache import Cache


class World:
    def __init__(self, api: Any, cluster: Cluster, cache: Cache, make: Callable[..., Any]) -> None:
        self.api, self.cache, self.make, self.now = api, cache, make, 0.0
        self.sweeper = Sweeper(cluster, cache, lambda: True, clock=lambda: self.now)

    def part(self, kind: kinds.Kind, name: str, **more: Any) -> None:
        meta = {"labels": {names.SOURCE: "s1", names.MANAGED_BY: names.MANAGER}}
        self.cache.seen(kind, None, self.api.put(kind, self.make(kind, name, metadata=meta, **more)))

    def wanted(self, event: str) -> None:
        spec = {"model": {"source": "s1"}}
        self.cache.seen(kinds.DEPLOYMENT, event, self.make(kinds.DEPLOYMENT, "a", spec=spec))

    def sweep(self) -> set[str]:
        """Names of what is left."""
        self.sweeper.sweep()
        for kind in (kinds.POD, kinds.CONFIG_MAP, kinds.POLICY):
            for namespace, name in self.cache.listed(kind):
                if kind.path(namespace, name) not in self.api.objects:
                    self.cache.seen(kind, "DELETED", self.make(kind, name, uid=self.cache.uid(kind, namespace, name)))
        return {path.rsplit("/", 1)[-1] for path in self.api.objects}


@pytest.fixture
def world(api: Any, cluster: Cluster, cache: Cache, make: Any) -> World:
    return World(api, cluster, cache, make)


def test_what_no_deployment_refers_to_goes_the_record_after_an_hour(world: World) -> None:
    world.wanted("ADDED")
    world.part(kinds.POD, "look")
    world.part(kinds.POLICY, "policy")
    world.part(kinds.CONFIG_MAP, "record")
    assert world.sweep() == {"look", "policy", "record"}
    world.wanted("DELETED")
    assert world.sweep() == {"record"}
    world.now += KEEP_RECORDS_SECONDS + 1
    assert world.sweep() == set()


def test_a_record_that_is_wanted_again_stays(world: World) -> None:
    world.part(kinds.CONFIG_MAP, "record")
    assert world.sweep() == {"record"}
    world.cache.seen(kinds.DEPLOYMENT, "ADDED", world.make(kinds.DEPLOYMENT, "b", spec={"model": {"source": "s1"}}))
    world.now += KEEP_RECORDS_SECONDS + 1
    assert world.sweep() == {"record"}


def test_one_that_may_not_be_removed_keeps_nothing_else(world: World) -> None:
    world.part(kinds.POD, "first")
    world.part(kinds.POD, "second")
    world.api.faults = [(403, {})]
    assert len(world.sweep()) == 1


def test_the_policy_of_inspect_pods_goes_with_the_last_deployment_of_its_namespace(world: World) -> None:
    policy = world.make(
        kinds.POLICY, names.INSPECT_POLICY, metadata={"labels": {names.MANAGED_BY: names.MANAGER, names.COMPONENT: "x"}}
    )
    world.cache.seen(kinds.POLICY, None, world.api.put(kinds.POLICY, policy))
    world.wanted("ADDED")
    world.part(kinds.POD, "look")
    assert world.sweep() == {"look", names.INSPECT_POLICY}
    world.wanted("DELETED")
    assert world.sweep() == {names.INSPECT_POLICY}, "a pod may still be on its way out"
    assert world.sweep() == set()


def test_a_look_that_is_under_way_is_left_alone(world: World) -> None:
    world.wanted("ADDED")
    world.part(kinds.POD, "look", status={"phase": "Running"})
    world.now += 1e6
    assert world.sweep() == {"look"}
