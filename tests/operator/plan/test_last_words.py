"""What a job's pod says as it ends: late, never, or of a pod that is gone by then."""

from dataclasses import replace

import pytest

from tests.support.job_miniature import JobCluster


def ended(outcome: str = "Complete") -> JobCluster:
    """A job whose Job has just ended; nothing has looked at it since."""
    cluster = JobCluster(outcome=outcome)
    while cluster.batch is None or not cluster.batch.ended:
        cluster.act()
        cluster.others_move()
    return cluster


def test_last_words_that_come_late_are_waited_for_and_not_for_ever() -> None:
    cluster = ended()
    said, cluster.pods = cluster.pods, []
    assert cluster.act().again_in is not None
    assert cluster.condition("Complete")["status"] == "False"
    cluster.now += 5
    cluster.pods = said
    cluster.act()
    assert cluster.status["phase"] == "Complete"
    silent = ended()
    silent.pods = []
    silent.act()
    silent.now += 60
    silent.act()
    assert silent.condition("Failed")["reason"] == "NoReport"


@pytest.mark.parametrize(("outcome", "condition", "reason"), [
    ("Complete", "Complete", "Passed"), ("GateFailed", "Failed", "GateFailed"),
])  # fmt: skip
def test_a_pod_that_was_deleted_as_it_ended_counts_by_its_last_words(outcome: str, condition: str, reason: str) -> None:
    cluster = ended(outcome)
    cluster.parted, cluster.pods = tuple(cluster.pods[-1:]), []
    cluster.now += 60
    cluster.act()
    assert (cluster.condition(condition)["status"], cluster.condition(condition)["reason"]) == ("True", reason)


def test_last_words_of_an_earlier_job_say_nothing_of_this_one() -> None:
    cluster = ended()
    cluster.parted, cluster.pods = (replace(cluster.pods[-1], owner="earlier"),), []
    cluster.now += 60
    cluster.act()
    assert cluster.condition("Failed")["reason"] == "NoReport"
