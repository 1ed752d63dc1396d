"""Replicas that are spread over several ranks of one pod."""

from dataclasses import replace

from plimsoll.api.status import checked
from plimsoll.operator.snapshot import Page
from tests.support.miniature import Cluster, spec


def test_status_shows_the_most_that_each_rank_was_measured_at_beside_its_budget() -> None:
    cluster = Cluster(spec=spec(replicas=2, accelerator={"resource": "cpu"}, parallelism={"tensor": 2}))
    cluster.settle()
    page = Page(1.0, "ready", {}, {"peak": 5}, ranks=({"rank": 0, "peak": 5}, {"rank": 1, "peak": 3}))
    other = replace(page, ranks=({"rank": 0, "peak": 4}, {"rank": 1, "peak": 8}))
    cluster.pods = [replace(cluster.pods[0], page=page), replace(cluster.pods[1], page=other)]
    cluster.act()
    assert cluster.status["observed"] == {"peak": 5, "ranks": [{"rank": 0, "peak": 5}, {"rank": 1, "peak": 8}]}
    ranks = cluster.status["budget"]["ranks"]
    assert [rank["rank"] for rank in ranks] == [0, 1]
    assert {key: ranks[0][key] for key in cluster.status["budget"]["perDevice"]} == cluster.status["budget"][
        "perDevice"
    ]
    assert checked(cluster.status)["budget"]["ranks"] == ranks


def test_status_shows_how_far_each_rank_of_a_replica_has_loaded() -> None:
    cluster = Cluster(spec=spec(accelerator={"resource": "cpu"}, parallelism={"tensor": 2}))
    cluster.settle()
    loads = ({"rank": 0, "bytes": 5, "total": 9, "seconds": 1.0}, {"rank": 1, "bytes": 4, "total": 8, "seconds": 2.0})
    page = Page(1.0, "ready", {"load": {"bytes": 9, "total": 17, "seconds": 2.0}}, rank_loads=loads)
    cluster.pods = [replace(cluster.pods[0], page=page)]
    cluster.act()
    startup = cluster.status["startup"]
    assert startup == {"load": {"bytes": 9, "total": 17, "seconds": 2.0}, "ranks": list(loads)}
    assert checked(cluster.status)["startup"] == startup
