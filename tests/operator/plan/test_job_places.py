"""Where the pods of a quantization job may go, and what is said where they may go nowhere."""

from dataclasses import replace
from typing import Any

from plimsoll.operator.snapshot import Node
from tests.support.job_miniature import JobCluster, job_spec
from tests.support.miniature import GIB

MIB = 1 << 20


def test_a_job_whose_pods_are_refused_says_so_in_the_clusters_words() -> None:
    cluster = JobCluster()
    while cluster.batch is None:
        cluster.act()
        cluster.others_move()
    cluster.pods = []
    cluster.batch = replace(
        cluster.batch, last_event='pods "demo" is forbidden: exceeded quota: must specify limits.cpu'
    )
    assert 0 < (cluster.act().again_in or 0) <= 30
    stands = cluster.condition("Complete")
    assert (stands["status"], stands["reason"]) == ("False", "PodsRefused")
    assert "must specify limits.cpu" in cluster.status["message"]
    assert "pod.limits" in cluster.status["message"]


def test_a_node_that_the_users_affinity_excludes_holds_no_job() -> None:
    term = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
    required = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}
    large = Node("n1", allocatable={"cpu": 8000, "memory": 16 * GIB, "pods": 110}, labels={"zone": "b"})
    small = replace(large, name="n2", labels={"zone": "a"}, allocatable={**large.allocatable, "memory": 100 * MIB})
    cluster = JobCluster(spec=job_spec(pod={"affinity": required}), nodes=(large, small))
    cluster.settle()
    assert cluster.condition("Accepted")["reason"] == "DoesNotFit"
    assert "n2" in cluster.condition("Accepted")["message"]
    # kubectl cuts a column at a line break.
    assert "fits with: " in cluster.status["message"]
    assert "\n" not in cluster.status["message"]


def _sized(**fields: Any) -> tuple[int, int, str]:
    """(bytes of the walk, bytes of the line, what `Accepted` says) of a job once it runs."""
    cluster = JobCluster(spec=job_spec(**fields))
    while cluster.batch is None:
        cluster.act()
        cluster.others_move()
    memory = cluster.status["budget"]["memory"]
    return memory["walk"], memory["total"], cluster.condition("Accepted")["message"]


def test_workers_count_in_the_memory_of_the_job() -> None:
    alone, line, words = _sized()
    assert "workers" not in words
    four, raised, words = _sized(parallelism={"workers": 4})
    assert "with 4 workers" in words
    assert raised >= four >= alone + 3 * (288 * MIB)
    assert raised > line


def test_workers_that_do_not_fit_the_line_are_refused_with_the_number_that_does() -> None:
    cluster = JobCluster(spec=job_spec(parallelism={"workers": 4}, accelerator={"memory": "1100Mi"}))
    cluster.settle()
    refusal = cluster.condition("Accepted")
    assert refusal["reason"] == "DoesNotFit"
    assert "fits with: parallelism.workers 2" in refusal["message"]
