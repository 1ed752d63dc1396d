"""One of several namespaces whose Role is gone: the others go on, and it is served again when it is back."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from kubernetes.client import Configuration
from structlog.testing import capture_logs

from plimsoll.operator import kinds, names
from plimsoll.operator.cluster import Cluster, ForbiddenError
from plimsoll.operator.main import Operator
from plimsoll.operator.reflector import RefusedError
from plimsoll.operator.settings import Settings
from plimsoll.operator.verify import LOST_SECONDS, RETRY_SECONDS, Rounds, Verifier
from plimsoll.operator.watch_cache import Cache
from plimsoll.operator.watches import Watches

TEAMS = ("team-a", "team-b", "team-c")
WATCHED = (kinds.DEPLOYMENT, kinds.REPLICA_SET, kinds.SERVICE)
OF_DEMO = {names.MANAGED_BY: names.MANAGER, names.DEPLOYMENT: "demo"}


class World:
    """Three namespaces with a deployment and its Service each."""

    def __init__(
        self, api: Any, cluster: Cluster, cache: Cache, metrics: Any, make: Callable[..., Any],
        namespaces: tuple[str, ...] = TEAMS,
    ) -> None:  # fmt: skip
        self.api, self.cache, self.make = api, cache, make
        self.regained: list[str] = []
        self.slept: list[float] = []
        self.verifier = Verifier(
            cluster, cache, namespaces, metrics, sleep=self.slept.append, regained=self.regained.append
        )
        for team in TEAMS:
            self.there(team)

    def there(self, team: str, uid: str = "1") -> None:
        for kind in WATCHED:
            found = []
            if kind is not kinds.REPLICA_SET:
                meta = {"namespace": team, "labels": OF_DEMO}
                made = self.make(kind, "demo", uid=f"{kind.name}-{team}-{uid}", metadata=meta, spec={})
                self.api.objects.pop(kind.path(team, "demo"), None)
                found = [self.api.put(kind, made)]
            self.api.pages[kind.path(team)] = [found]

    def fill(self) -> None:
        for kind in WATCHED:
            self.verifier.fill(kind)

    def check(self) -> int:
        return sum(self.verifier.check(kind) for kind in WATCHED)

    def served(self) -> list[str]:
        return [team for team in TEAMS if self.cache.snapshot((team, "demo"), 0.0)]

    def lose(self, team: str) -> None:
        self.api.forbidden = {f"/namespaces/{team}/"}


@pytest.fixture
def world(api: Any, cluster: Cluster, cache: Cache, metrics: Any, make: Any) -> World:
    return World(api, cluster, cache, metrics, make)


def warnings(said: list[Any]) -> list[str]:
    return [one["event"] for one in said if one["log_level"] == "warning"]


def test_at_start_the_others_are_listed_and_it_is_said_once(world: World) -> None:
    world.lose("team-b")
    with capture_logs() as said:
        world.fill()
        world.check()
    assert world.served() == ["team-a", "team-c"]
    (warning,) = [one for one in said if one["log_level"] == "warning"]
    assert warning["namespace"] == "team-b"
    assert "/namespaces/team-b/modeldeployments is forbidden" in warning["error"]


def test_while_running_it_counts_as_empty_and_the_others_are_checked(world: World) -> None:
    world.fill()
    world.lose("team-b")
    missed = world.there("team-c", uid="2")
    with capture_logs() as said:
        assert world.check() == 2, missed
        assert world.check() == 0
    assert world.served() == ["team-a", "team-c"]
    for kind in WATCHED:
        assert "team-b" not in {namespace for namespace, _ in world.cache.listed(kind)}
    assert warnings(said).count("a namespace is served no more: is it there, and the operator's Role in it?") == 1


@pytest.mark.parametrize("uid", ["1", "2"], ids=["as it was", "made anew"])
def test_what_comes_back_is_served_again_whole_and_no_watch_has_missed_it(world: World, uid: str) -> None:
    world.fill()
    world.lose("team-b")
    world.check()
    world.api.forbidden.clear()
    world.there("team-b", uid)
    with capture_logs() as said:
        assert world.check() == 0
    assert (world.regained, world.slept, world.verifier.missed) == (["team-b"], [], {})
    assert world.served() == list(TEAMS)
    assert ("team-b", "demo") in world.cache.listed(kinds.SERVICE)
    assert "a namespace is served again" in [one["event"] for one in said]


def test_nothing_is_done_there_before_all_of_it_is_known(world: World) -> None:
    world.lose("team-b")
    world.fill()
    raw = world.api.objects[kinds.DEPLOYMENT.path("team-b", "demo")]
    world.cache.seen(kinds.DEPLOYMENT, "ADDED", raw)
    assert "team-b" not in world.served()
    world.api.forbidden = {"/namespaces/team-b/services"}
    world.check()
    assert (world.served(), world.regained) == (["team-a", "team-c"], [])
    world.api.forbidden.clear()
    world.check()
    assert (world.served(), world.regained) == (list(TEAMS), ["team-b"])


def test_one_kind_that_may_not_be_listed_where_deployments_may_is_an_error(world: World) -> None:
    world.api.forbidden = {"/namespaces/team-b/services"}
    with pytest.raises(ForbiddenError, match="team-b/services"):
        world.fill()
    assert world.cache.lost == frozenset()


def test_a_right_that_is_missing_everywhere_is_an_error(world: World) -> None:
    world.api.forbidden = {"/namespaces/"}
    with pytest.raises(ForbiddenError):
        world.fill()
    with pytest.raises(ForbiddenError):
        world.verifier.fill(kinds.SERVICE)


@pytest.mark.parametrize("namespaces", [(), ("team-a",)], ids=["cluster", "one"])
def test_a_right_that_is_missing_in_all_that_is_served_is_an_error(
    api: Any, cluster: Cluster, cache: Cache, metrics: Any, make: Any, namespaces: tuple[str, ...]
) -> None:
    world = World(api, cluster, cache, metrics, make, namespaces)
    world.api.forbidden = {"modeldeployments"}
    with pytest.raises(ForbiddenError):
        world.fill()


def test_a_lost_namespace_is_looked_at_every_minute_and_a_doubt_at_once(world: World) -> None:
    world.fill()
    at = world.verifier._checked["ModelDeployment"]
    assert not world.verifier.due(kinds.DEPLOYMENT, at + LOST_SECONDS + 1)
    world.verifier.doubt("team-b")
    assert world.verifier.due(kinds.DEPLOYMENT, at)
    world.lose("team-b")
    world.check()
    at = world.verifier._checked["ModelDeployment"]
    world.verifier.doubt("team-b")
    assert not world.verifier.due(kinds.DEPLOYMENT, at + LOST_SECONDS - 1)
    assert world.verifier.due(kinds.DEPLOYMENT, at + LOST_SECONDS + 1)
    assert not world.verifier.due(kinds.SERVICE, at + LOST_SECONDS + 1)


def test_a_kind_that_fails_rests_while_the_others_are_checked_and_is_told_of_once(world: World) -> None:
    world.fill()
    world.api.forbidden = {"replicasets"}
    for kind in WATCHED:
        world.verifier._checked[kind.name] = float("-inf")
    rounds = Rounds(world.verifier, lambda: WATCHED, lambda kind: None)
    with capture_logs() as said:
        rounds.pulse.start()
        until = time.monotonic() + 20
        while world.verifier.due(kinds.SERVICE, time.monotonic()) and time.monotonic() < until:
            time.sleep(0.05)
        rounds.stop()
        rounds.pulse.join(20)
        at, _ = rounds._failed["ReplicaSet"]
        rounds._failed["ReplicaSet"] = (at - RETRY_SECONDS - 1, rounds._failed["ReplicaSet"][1])
        assert rounds._due() is kinds.REPLICA_SET
        with pytest.raises(ForbiddenError) as again:
            world.verifier.check(kinds.REPLICA_SET)
        rounds._note(kinds.REPLICA_SET, again.value)
    assert rounds._due() is None
    assert warnings(said) == ["a kind could not be checked"]
    assert "replicasets cannot be listed" in rounds.refused["ReplicaSet"]


def test_readiness_names_the_right_that_is_missing(api: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    config = tmp_path / "kubeconfig"
    config.write_text(f"clusters: [{{name: c, cluster: {{server: '{api.url}'}}}}]\nusers: [{{name: u, user: {{}}}}]\n"
                      "contexts: [{name: c, context: {cluster: c, user: u}}]\ncurrent-context: c\n")  # fmt: skip
    monkeypatch.setenv("KUBECONFIG", str(config))
    operator = Operator(Settings(health_port=0, namespaces=TEAMS))
    operator._filled = True
    operator.watches.kinds = (kinds.POD,)
    operator.watches.opened = {"Pod": time.monotonic()}
    assert operator.ready() == []
    operator.rounds._note(kinds.POD, ForbiddenError("pods is forbidden", status=403))
    assert operator.ready() == ["pods cannot be listed: pods is forbidden"]


@pytest.mark.parametrize("namespaces", [TEAMS, ()])
def test_a_refused_watch_says_where(api: Any, cache: Cache, namespaces: tuple[str, ...]) -> None:
    configuration = Configuration()
    configuration.host = api.url
    api.forbidden = {"/team-b/", "/v1/services"}
    watches = Watches(configuration, cache, namespaces)
    watches.kinds = (kinds.SERVICE,)
    refused: list[str] = []
    watches.refused = refused.append

    async def ask() -> None:
        async with aiohttp.ClientSession() as session:
            for one in watches.reflectors(session):
                with contextlib.suppress(RefusedError):
                    await one._list()

    for team in namespaces:
        api.pages[kinds.SERVICE.path(team)] = [[]]
    asyncio.run(ask())
    assert refused == (["team-b"] if namespaces else [])
    assert (watches.denied == {"Service"}) is (not namespaces)


def test_what_is_known_to_be_lost_is_not_told_at_every_attempt(cache: Cache) -> None:
    watches = Watches(Configuration(), cache, TEAMS)
    with capture_logs() as said:
        for lost in (frozenset[str](), frozenset({"team-a"}), frozenset({"team-a", "team-b"})):
            cache.lost = lost
            for team in ("team-a", "team-b"):
                watches.failed(kinds.POD, team, "the API server answered 403")
    assert [one["namespace"] for one in said] == ["team-a", "team-b", "team-b"]


def test_a_kind_is_watched_as_long_as_it_is_in_one_namespace(cache: Cache) -> None:
    watches = Watches(Configuration(), cache, TEAMS)
    watches.kinds = (kinds.POD,)
    for team in TEAMS[:2]:
        watches.answered(kinds.POD, team, 200, watching=True)
    watches.failed(kinds.POD, "team-a", "cut")
    assert (watches.open(), watches.missing()) == (True, {})
    watches.failed(kinds.POD, "team-b", "cut")
    assert (watches.open(), list(watches.missing())) == (False, ["Pod"])
    watches.answered(kinds.POD, "team-c", 200, watching=True)
    assert (watches.open(), watches.missing()) == (True, {})
