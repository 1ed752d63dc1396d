"""Two operators, one lease: never both, never none for long, whatever the API server does."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.operator import kinds, lease
from plimsoll.operator.cluster import Cluster, ConflictError, NotFoundError, UnavailableError
from plimsoll.operator.lease import (
    BELIEVE_SECONDS,
    LEASE_SECONDS,
    MOST_LEASE_SECONDS,
    RENEW_SECONDS,
    RETRY_SECONDS,
    Lease,
)
from plimsoll.operator.metrics import Metrics


class Store:
    """The Lease as an API server keeps it; `away` is what it answers with instead."""

    def __init__(self) -> None:
        self.record: dict[str, Any] | None = None
        self.away: str = ""
        self.writes = 0

    def request(self, verb: str, path: str, query: Any = None, body: Any = None, **_: Any) -> Any:
        if self.away == "cut":
            raise UnavailableError("away")
        if verb == "GET":
            if self.record is None:
                raise NotFoundError("none")
            return self.record
        if verb == "POST" and self.record is not None:
            raise ConflictError("exists")
        if verb == "PUT":
            assert self.record is not None
            if body["metadata"]["resourceVersion"] != self.record["metadata"]["resourceVersion"]:
                raise ConflictError("changed")
        self.writes += 1
        self.record = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.writes)}}
        if self.away == "lost":
            raise UnavailableError("the answer was lost")
        return self.record


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def contender(store: Store, clock: Callable[[], float], told: list[str] | None = None) -> Lease:
    told = [] if told is None else told
    return Lease(
        store, "ns", "lease", Metrics(), lambda: told.append("gained"), lambda: told.append("lost"), clock  # type: ignore[arg-type]
    )  # fmt: skip


def test_the_first_leads_and_the_second_waits() -> None:
    store, clock = Store(), Clock()
    first, second = contender(store, clock), contender(store, clock)
    first.step()
    second.step()
    assert (first.held(), second.held()) == (True, False)
    assert second.holder == first.identity


def test_a_leader_that_falls_silent_is_followed_once_its_time_is_up() -> None:
    store, clock, told = Store(), Clock(), list[str]()
    first, second = contender(store, clock, told), contender(store, clock)
    first.step()
    second.step()
    clock.now += BELIEVE_SECONDS
    assert not first.held()
    second.step()
    assert not second.held()
    clock.now += LEASE_SECONDS - BELIEVE_SECONDS
    second.step()
    assert second.held()
    first.step()
    assert told == ["gained", "lost"]
    assert store.record is not None
    assert store.record["spec"]["leaseTransitions"] == 1


def test_a_renewal_that_failed_is_tried_again_before_time_runs_out() -> None:
    store, clock = Store(), Clock()
    first = contender(store, clock)
    first.step()
    assert first.pause("") == RENEW_SECONDS
    assert store.record is not None
    real, store.request = store.request, _conflict  # type: ignore[method-assign]
    clock.now += RENEW_SECONDS
    assert first.step() == ""
    assert first.held()
    assert first.pause("") == RETRY_SECONDS
    store.request = real  # type: ignore[method-assign]
    clock.now += RETRY_SECONDS
    first.step()
    assert first.pause("") == RENEW_SECONDS


def _conflict(*_: Any, **__: Any) -> Any:
    raise ConflictError("changed")


def test_a_lease_given_back_is_taken_at_once() -> None:
    store, clock = Store(), Clock()
    first, second = contender(store, clock), contender(store, clock)
    first.step()
    second.step()
    first._release()
    assert not first.held()
    second.step()
    assert second.held()


def test_after_an_outage_the_same_one_goes_on() -> None:
    store, clock, told = Store(), Clock(), list[str]()
    only = contender(store, clock, told)
    only.step()
    store.away = "cut"
    clock.now += 60
    assert only.step() == "away"
    store.away = ""
    assert only.step() == ""
    assert only.held()
    assert told == ["gained", "lost", "gained"]


def test_a_missing_namespace_is_named(cluster: Cluster) -> None:
    class Nowhere(Store):
        def request(self, verb: str, path: str, *_: Any, **__: Any) -> Any:
            raise NotFoundError("namespaces not found")

    assert contender(Nowhere(), Clock()).step() == "namespace ns does not exist"


def test_it_is_a_lease_as_others_read_it(api: Any, cluster: Cluster) -> None:
    only = Lease(cluster, "ns", "lease", Metrics(), lambda: None, lambda: None)
    assert only.step() == ""
    assert only.step() == ""
    record = cluster.get(kinds.LEASE, "ns", "lease")
    assert record["spec"]["holderIdentity"] == only.identity
    assert record["spec"]["leaseDurationSeconds"] == LEASE_SECONDS
    assert record["spec"]["renewTime"] >= record["spec"]["acquireTime"]


@pytest.mark.parametrize("count", [2, 3])
@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["step", "step", "wait", "away", "crash"]), st.integers(0, 2)), max_size=60))
def test_never_two_at_once_and_one_in_the_end(count: int, history: list[tuple[str, int]]) -> None:
    store, clock = Store(), Clock()
    contenders = [contender(store, clock) for _ in range(count)]
    for what, which in history:
        if what == "step":
            contenders[which % count].step()
        elif what == "wait":
            clock.now += (0.5, 4.0, 11.0)[which]
        elif what == "away":
            store.away = ("", "cut", "lost")[which]
        else:
            contenders[which % count] = contender(store, clock)
        assert sum(one.held() for one in contenders) <= 1
    store.away = ""
    for _ in range(12):
        clock.now += 2.0
        for one in contenders:
            one.step()
            assert sum(other.held() for other in contenders) <= 1
    assert sum(one.held() for one in contenders) == 1


def test_a_record_that_somebody_else_has_written_keeps_no_operator_from_leading() -> None:
    store, clock = Store(), Clock()
    spec = {"holderIdentity": "nobody", "leaseDurationSeconds": 2**31 - 1, "leaseTransitions": 2**31 - 1}
    store.record = {"metadata": {"name": "lease", "resourceVersion": "7"}, "spec": spec}
    one = contender(store, clock)
    assert one.step() == ""
    clock.now += MOST_LEASE_SECONDS
    assert one.step() == ""
    assert one.held()
    assert store.record["spec"]["leaseTransitions"] == 2**31 - 1


def test_a_pod_that_waits_says_once_which_pod_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(lease.log, "info", lambda text, **more: said.append({"text": text, **more}), raising=False)
    store, clock = Store(), Clock()
    first, second = contender(store, clock), contender(store, clock)
    first.step()
    said.clear()
    for _ in range(3):
        second.step()
    assert [one["leader"] for one in said] == [first.identity.rpartition("_")[0]]
    assert "read its log" in said[0]["text"]
