"""Deployments that serve what a quantization job writes: waiting, rolling over, and keeping what serves."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.operator import build
from plimsoll.operator.actions import Apply
from plimsoll.operator.outputs import output_of
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import Failure, Output, Quantizing, ReplicaSet
from tests.support.gitops import kstatus
from tests.support.miniature import Cluster, spec

OF_A_JOB = {"model": {"quantizationJob": "awq"}}
FIRST = Output("awq", "pvc://models/awq", "sha256:" + "1" * 64)
SECOND = Output("awq", "pvc://models/awq-2", "sha256:" + "2" * 64)
RUNS = Quantizing("awq", "Quantizing", 40)
FAILED = Quantizing("awq", "Failed", 100, "perplexity rose by 21.8 %", failed="GateFailed")


def done(output: Output) -> Quantizing:
    return Quantizing("awq", "Complete", 100, output=output)


def served(cluster: Cluster) -> list[str | None]:
    """Digests that serving pods have, by their ReplicaSets."""
    by_revision = {one.revision: one.output.digest if one.output else None for one in cluster.sets.values()}
    return [by_revision[pod.revision] for pod in cluster.pods if pod.ready and pod.routable]


def serving_first() -> Cluster:
    cluster = Cluster(spec=spec(**OF_A_JOB), quantizing=done(FIRST))
    cluster.settle()
    assert served(cluster) == [FIRST.digest]
    return cluster


@pytest.mark.parametrize(
    ("job", "words"),
    [(None, "There is no QuantizationJob awq"), (RUNS, "QuantizationJob awq is Quantizing, 40 %")],
    ids=["no job", "running"],
)
def test_it_waits_and_says_for_what(job: Quantizing | None, words: str) -> None:
    cluster = Cluster(spec=spec(**OF_A_JOB), quantizing=job)
    cluster.settle(20)
    ready = cluster.condition("SourceReady")
    assert (ready["status"], ready["reason"]) == ("False", "WaitingForQuantization")
    assert words in ready["message"]
    assert words in cluster.status["message"]
    assert cluster.status["phase"] == "Quantizing"
    assert kstatus(1, cluster.status) == "InProgress"
    assert not cluster.sets
    assert cluster.inspector is None


def test_a_job_that_failed_with_nothing_before_it_is_a_stop() -> None:
    cluster = Cluster(spec=spec(**OF_A_JOB), quantizing=FAILED)
    cluster.settle(20)
    assert cluster.condition("SourceReady")["reason"] == "QuantizationFailed"
    assert "GateFailed" in cluster.status["message"]
    assert "21.8 %" in cluster.status["message"]
    assert kstatus(1, cluster.status) == "Failed"
    assert not cluster.sets


def test_its_output_is_served_by_address_and_digest() -> None:
    cluster = serving_first()
    assert cluster.status["phase"] == "Ready"
    assert cluster.status["source"]["uri"] == FIRST.uri
    (live,) = (one for (kind, _), one in cluster.children.items() if kind == "ReplicaSet")
    pod = live["spec"]["template"]["spec"]
    env = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
    assert env["PLIMSOLL_CHECKPOINT_DIGEST"] == FIRST.digest
    assert "file:///models/awq" in env["PLIMSOLL_DEPLOYMENT"]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}


def test_the_job_that_replaces_it_is_waited_for_while_the_old_output_serves_and_then_rolled_out() -> None:
    cluster = serving_first()
    cluster.quantizing = RUNS
    cluster.settle(20)
    assert served(cluster) == [FIRST.digest]
    assert cluster.condition("Ready")["status"] == "True"
    assert cluster.condition("SourceReady")["reason"] == "WaitingForQuantization"
    assert "goes on serving" in cluster.condition("SourceReady")["message"]
    assert kstatus(1, cluster.status) == "InProgress"
    cluster.quantizing = done(SECOND)
    cluster.settle()
    assert served(cluster) == [SECOND.digest]
    assert cluster.status["phase"] == "Ready"
    assert kstatus(1, cluster.status) == "Current"
    assert len(cluster.sets) == 2


def test_a_failed_gate_leaves_the_old_output_serving() -> None:
    cluster = serving_first()
    cluster.quantizing = FAILED
    cluster.settle(30)
    assert served(cluster) == [FIRST.digest]
    assert cluster.condition("Ready")["status"] == "True"
    assert cluster.condition("SourceReady")["reason"] == "QuantizationFailed"
    assert cluster.condition("Stalled")["reason"] == "QuantizationFailed"
    assert kstatus(1, cluster.status) == "Failed"


def test_a_deleted_job_leaves_its_output_serving_and_scalable() -> None:
    cluster = serving_first()
    cluster.quantizing = None
    cluster.settle(20)
    assert cluster.condition("SourceReady")["reason"] == "QuantizationJobGone"
    assert kstatus(1, cluster.status) == "Current"
    cluster.change(replicas=3)
    cluster.settle()
    assert served(cluster) == [FIRST.digest] * 3


def test_naming_another_job_keeps_the_old_output_until_there_is_a_new_one() -> None:
    cluster = serving_first()
    cluster.change(model={"quantizationJob": "other"})
    cluster.quantizing = None
    cluster.settle(20)
    assert served(cluster) == [FIRST.digest]
    assert cluster.condition("Ready")["status"] == "False"
    assert "goes on serving" in cluster.condition("Ready")["message"]
    cluster.quantizing = replace(done(SECOND), output=replace(SECOND, job="other"))
    cluster.settle()
    assert served(cluster) == [SECOND.digest]


def test_an_output_whose_pods_fail_is_given_up_and_the_old_one_serves() -> None:
    cluster = serving_first()
    cluster.bad = {build.revision(cluster.spec, SECOND)}
    cluster.quantizing = done(SECOND)
    cluster.settle()
    assert served(cluster) == [FIRST.digest]
    assert cluster.condition("Progressing")["reason"] == "RolloutFailed"
    # With the job gone, what failed is not what is kept.
    cluster.quantizing = None
    cluster.settle()
    assert served(cluster) == [FIRST.digest]
    assert cluster.status["phase"] == "Ready"


def test_an_output_is_its_jobs_and_served_whatever_sources_are_allowed() -> None:
    cluster = Cluster(spec=spec(**OF_A_JOB), quantizing=done(FIRST), settings=Settings(allowed_sources=("hf://org/*",)))
    cluster.settle()
    assert served(cluster) == [FIRST.digest]
    cluster.change(model={"source": FIRST.uri})
    cluster.settle(10)
    accepted = cluster.condition("Accepted")
    assert accepted["reason"] == "SourceNotAllowed"
    assert "spec.model.source" in accepted["message"]


def test_another_output_of_one_spec_is_another_revision_and_no_output_changes_no_hash() -> None:
    wish = spec(**OF_A_JOB)
    found = {build.revision(wish), build.revision(wish, FIRST), build.revision(wish, SECOND)}
    assert len(found) == 3
    assert build.revision(wish, FIRST) == build.revision(wish, replace(FIRST, job="renamed"))


def test_what_is_kept_is_the_newest_that_was_not_given_up() -> None:
    sets = (
        ReplicaSet("a", "a", "a", 1, number=1, output=FIRST),
        ReplicaSet("b", "b", "b", 1, number=2, output=SECOND),
        ReplicaSet("c", "c", "c", 1, number=3, output=replace(SECOND, digest="x"), failure=Failure("a", "b", 0.0)),
        ReplicaSet("d", "d", "d", 1, number=4, output=replace(SECOND, job="other")),
        ReplicaSet("e", "e", "e", 1, number=5),
    )
    assert output_of("awq", None, sets) == SECOND
    assert output_of("awq", RUNS, sets[:1]) == FIRST
    assert output_of("awq", done(SECOND), sets[:1]) == SECOND
    assert output_of("nobody", None, sets) is None


JOBS = st.sampled_from([None, RUNS, FAILED, done(FIRST), done(SECOND)])


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(JOBS, st.integers(1, 25)), min_size=1, max_size=6))
def test_whatever_becomes_of_jobs_what_has_served_goes_on(history: list[tuple[Quantizing | None, int]]) -> None:
    cluster = Cluster(spec=spec(**OF_A_JOB))
    has_served = False
    for job, rounds in history:
        cluster.quantizing = job
        for choice in range(rounds):
            cluster.act()
            cluster.others_move(choice)
            has_served |= bool(served(cluster))
            assert not has_served or served(cluster)
            assert all(digest in (FIRST.digest, SECOND.digest) for digest in served(cluster))
    cluster.settle()
    last = next((job.output for job, _ in reversed(history) if job is not None and job.output), None)
    if history[-1][0] is not None and history[-1][0].output is not None:
        assert last is not None
        assert served(cluster) == [last.digest]
    # A look at what has settled finds nothing to do.
    assert not [action for action in cluster.look().actions if isinstance(action, Apply)]
