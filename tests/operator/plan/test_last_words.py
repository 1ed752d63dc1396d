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


def test_last_words_that_come_late_are_waited_for() -> None:
    cluster = ended()
    said, cluster.pods = cluster.pods, []
    assert cluster.act().again_in is not None
    assert cluster.condition("Complete")["status"] == "False"
    cluster.now += 5
    cluster.pods = said
    cluster.act()
    assert cluster.status["phase"] == "Complete"


def lose(cluster: JobCluster) -> None:
    """Its pod is gone and nothing it said was read, for longer than is waited."""
    cluster.pods = []
    cluster.now += 60
    cluster.act()


def end_again(cluster: JobCluster) -> None:
    cluster.act()
    while cluster.batch is None or not cluster.batch.ended:
        cluster.others_move()
        cluster.act()


def test_a_report_that_was_lost_is_read_by_one_more_pod() -> None:
    cluster = ended()
    lose(cluster)
    assert (cluster.condition("Complete")["reason"], cluster.batch) == ("ReportLost", None)
    assert "another pod reads the output" in cluster.condition("Complete")["message"]
    assert cluster.condition("Failed")["status"] == "False"
    assert cluster.events[-1] == "Normal ReportLost"
    end_again(cluster)
    cluster.act()
    assert (cluster.made, cluster.condition("Complete")["status"]) == (2, "True")


def test_a_report_that_is_lost_twice_is_a_failure() -> None:
    cluster = ended()
    lose(cluster)
    cluster.act()
    while not cluster.batch.ended:  # type: ignore[union-attr]
        cluster.others_move()
    lose(cluster)
    assert (cluster.made, cluster.condition("Failed")["reason"]) == (2, "NoReport")


def test_a_pod_that_is_there_and_says_nothing_is_no_lost_report() -> None:
    cluster = ended()
    cluster.pods = [replace(cluster.pods[-1], containers=())]
    cluster.now += 60
    cluster.act()
    assert (cluster.made, cluster.condition("Failed")["reason"]) == (1, "NoReport")


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
    assert cluster.condition("Complete")["reason"] == "ReportLost"
