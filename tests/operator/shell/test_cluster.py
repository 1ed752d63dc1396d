"""The client against an API server that cuts, loses, refuses and sends away."""

from typing import Any

import pytest

from plimsoll.operator import kinds
from plimsoll.operator.cluster import (
    Cluster,
    ConflictError,
    ForbiddenError,
    GoneError,
    InvalidError,
    NotFoundError,
    NotLeaderError,
    UnavailableError,
)

SERVICE: dict[str, Any] = {"kind": "Service", "metadata": {"namespace": "ns", "name": "a"}, "spec": {"port": 1}}
BUSY = [(429, {}), (500, {}), (502, {}), (503, {}), (504, {})]


@pytest.mark.parametrize("fault", ["cut", "lost", "garbage", *BUSY])
def test_a_call_is_repeated_until_the_api_server_is_back(api: Any, cluster: Cluster, fault: Any) -> None:
    api.faults = [fault, fault]
    made = cluster.apply(kinds.SERVICE, SERVICE)
    assert made["spec"] == {"port": 1}
    assert len(api.requests) == 3


def test_waits_grow_and_differ(api: Any, cluster: Cluster, naps: list[float]) -> None:
    api.faults = [(503, {})] * 5
    cluster.apply(kinds.SERVICE, SERVICE)
    assert len(naps) == 5
    assert naps[-1] > naps[0]
    assert len(set(naps)) == 5


def test_retry_after_is_obeyed_within_reason(api: Any, cluster: Cluster, naps: list[float]) -> None:
    api.faults = [(429, {"Retry-After": "3"}), (429, {"Retry-After": "100000"}), (429, {"Retry-After": "soon"})]
    cluster.apply(kinds.SERVICE, SERVICE)
    assert naps[0] >= 3
    assert 10 <= naps[1] < 20
    assert naps[2] < 1


def test_a_server_that_stays_away_is_an_error_and_no_endless_wait(api: Any, cluster: Cluster) -> None:
    api.faults = [(429, {"Retry-After": "100000"})] * 50
    with pytest.raises(UnavailableError, match="429") as caught:
        cluster.apply(kinds.SERVICE, SERVICE)
    assert caught.value.after == 10.0
    assert len(api.requests) <= 3


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, InvalidError), (403, ForbiddenError), (404, NotFoundError), (409, ConflictError), (410, GoneError),
     (422, InvalidError)],
)  # fmt: skip
def test_a_no_is_told_at_once_with_the_servers_words(api: Any, cluster: Cluster, status: int, kind: type) -> None:
    api.faults = [(status, {})]
    with pytest.raises(kind, match=f"made up {status}"):
        cluster.apply(kinds.SERVICE, SERVICE)
    assert len(api.requests) == 1


def test_nothing_is_written_without_the_lease_not_even_by_a_repetition(api: Any, cluster: Cluster) -> None:
    leading = iter([True, True, False])
    cluster.may_write = lambda: next(leading)
    api.faults = ["cut", "cut", "cut"]
    with pytest.raises(NotLeaderError):
        cluster.apply(kinds.SERVICE, SERVICE)
    assert len(api.requests) == 2
    api.faults = []
    with pytest.raises(NotFoundError):
        cluster.get(kinds.SERVICE, "ns", "b")  # Reading needs no lease.


def test_a_list_comes_page_by_page(api: Any, cluster: Cluster) -> None:
    api.pages[kinds.POD.path("ns")] = [[{"n": 1}], [{"n": 2}, {"n": 3}], []]
    assert [len(page) for page in cluster.pages(kinds.POD, "ns", selector="a=b")] == [1, 2, 0]
    assert all("labelSelector=a%3Db" in path for _, path in api.requests)


def test_a_forgotten_continuation_says_so(api: Any, cluster: Cluster) -> None:
    api.pages[kinds.POD.path("ns")] = [[{"n": 1}], [{"n": 2}]]
    pages = cluster.pages(kinds.POD, "ns")
    next(pages)
    api.faults = [(410, {})]
    with pytest.raises(GoneError):
        next(pages)


def test_scaling_stops_where_another_was_faster(api: Any, cluster: Cluster) -> None:
    api.put(kinds.REPLICA_SET, {"metadata": {"namespace": "ns", "name": "r", "uid": "u"}, "spec": {"replicas": 2}})
    with pytest.raises(ConflictError):
        cluster.scale(kinds.REPLICA_SET, "ns", "r", "u", 1, 3)
    with pytest.raises(ConflictError):
        cluster.scale(kinds.REPLICA_SET, "ns", "r", "another", 2, 3)
    assert cluster.scale(kinds.REPLICA_SET, "ns", "r", "u", 2, 3)["spec"]["replicas"] == 3


def test_scaling_whose_answer_was_lost_ends_in_a_conflict_and_not_in_a_second_step(api: Any, cluster: Cluster) -> None:
    api.put(kinds.REPLICA_SET, {"metadata": {"namespace": "ns", "name": "r", "uid": "u"}, "spec": {"replicas": 1}})
    api.faults = ["lost"]
    with pytest.raises(ConflictError):
        cluster.scale(kinds.REPLICA_SET, "ns", "r", "u", 1, 2)
    assert cluster.get(kinds.REPLICA_SET, "ns", "r")["spec"]["replicas"] == 2


def test_deleting_spares_another_object_of_the_same_name(api: Any, cluster: Cluster) -> None:
    api.put(kinds.POD, {"metadata": {"namespace": "ns", "name": "p", "uid": "new"}})
    assert not cluster.delete(kinds.POD, "ns", "p", "old")
    assert cluster.get(kinds.POD, "ns", "p")
    assert cluster.delete(kinds.POD, "ns", "p", "new")
    assert not cluster.delete(kinds.POD, "ns", "p", "new")


def test_a_server_that_is_not_there_has_no_answer(cluster: Cluster, api: Any) -> None:
    api.server.shutdown()
    api.server.server_close()
    with pytest.raises(UnavailableError, match="no answer from the API server"):
        cluster.request("GET", "/version", retry=False, seconds=0.5)


def test_requests_are_counted_by_verb_and_answer(api: Any, cluster: Cluster, metrics: Any) -> None:
    api.faults = [(503, {})]
    cluster.apply(kinds.SERVICE, SERVICE)
    samples = [one for metric in metrics.requests.collect() for one in metric.samples]
    counted = {(one.labels["verb"], one.labels["code"]): one.value for one in samples if one.name.endswith("_total")}
    assert counted == {("PATCH", "503"): 1, ("PATCH", "200"): 1}
