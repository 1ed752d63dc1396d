"""The planner of quantization jobs against a cluster in miniature."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.operator.actions import Apply
from plimsoll.operator.parse_jobs import batch_job
from plimsoll.operator.plan import plan_job
from plimsoll.operator.plan.job_status import duration
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import BatchJob, Container, Pod
from tests.support.gitops import HEALTH, argocd, kstatus
from tests.support.job_miniature import DIGEST, LAYERS, JobCluster, job_spec
from tests.support.miniature import GIB

MIB = 1 << 20


def end_state(cluster: JobCluster) -> dict[str, Any]:
    """What a user finds at the end: times apart, it must not depend on how it came about."""
    kept = ("phase", "message", "evaluation", "output", "source", "job")
    conditions = {one["type"]: (one["status"], one["reason"]) for one in cluster.status["conditions"]}
    return {**{key: cluster.status.get(key) for key in kept}, "conditions": conditions, "reached": cluster.reached}


def test_from_nothing_to_complete_by_way_of_an_inspection() -> None:
    cluster = JobCluster()
    first = cluster.act()
    assert [a.object["kind"] for a in first.actions if isinstance(a, Apply)] == ["NetworkPolicy", "Pod"]
    assert cluster.status["phase"] == "Inspecting"
    assert "startTime" not in cluster.status
    cluster.settle()
    assert (cluster.made, cluster.status["phase"], cluster.status["message"]) == (1, "Complete", "")
    assert cluster.status["output"] == {"uri": "pvc://models/awq", "digest": DIGEST, "bytes": 1 << 27}
    assert cluster.status["evaluation"]["increase"] == "+21.8%"
    assert cluster.status["evaluation"]["recommendedCache"] == "int4"
    assert cluster.status["evaluation"]["caches"][1] == {
        "precision": "int4", "perplexity": 13.6, "klMean": 0.013, "top1Agreement": 0.93, "increase": "+1.49%",
    }  # fmt: skip
    assert cluster.status["progress"] == {"layer": LAYERS, "of": LAYERS, "percent": 100}
    assert cluster.condition("Complete")["status"] == "True"
    assert cluster.condition("Failed")["status"] == "False"
    assert not cluster.condition("Reconciling")
    assert cluster.status["completionTime"] > cluster.status["startTime"]


def test_events_tell_each_transition_once() -> None:
    cluster = JobCluster()
    cluster.settle()
    told = ["Fits", "Inspected", "Starting", "Quantizing", "Passed"]
    assert cluster.events == [f"Normal {reason}" for reason in told]


def test_a_finished_job_is_left_alone_when_everything_of_it_is_gone() -> None:
    cluster = JobCluster()
    cluster.settle()
    writes, cluster.batch, cluster.pods, cluster.children = cluster.writes, None, [], {}
    cluster.recorded = False
    for _ in range(20):
        cluster.now += 3600
        assert cluster.act().actions == ()
    assert cluster.writes == writes


def test_the_status_is_written_when_a_reader_would_notice() -> None:
    cluster = JobCluster()
    for _ in range(6):
        cluster.act()
        cluster.others_move()
    writes = cluster.writes
    for _ in range(20):
        # The seconds run and nothing else does.
        pod = cluster.pods[-1]
        assert pod.progress is not None
        cluster.pods[-1] = replace(pod, progress=pod.progress.model_copy(update={"seconds": pod.progress.seconds + 1}))
        cluster.now += 1
        cluster.act()
    assert cluster.writes <= writes + 1


def test_a_failed_gate_is_failed_with_its_figures_and_has_no_output() -> None:
    cluster = JobCluster(outcome="GateFailed")
    cluster.settle()
    failed = cluster.condition("Failed")
    assert (failed["status"], failed["reason"]) == ("True", "GateFailed")
    assert "21.8 %" in failed["message"]
    assert cluster.status["phase"] == "Failed"
    assert cluster.status["message"].startswith("GateFailed: perplexity rose")
    assert cluster.status["evaluation"]["after"]["klMean"] == 0.19
    assert "output" not in cluster.status
    assert cluster.condition("Stalled")["reason"] == "GateFailed"
    assert cluster.events[-1] == "Warning GateFailed"


def test_what_is_killed_for_memory_again_and_again_says_so() -> None:
    cluster = JobCluster(outcome="Crash", spec=job_spec(backoffLimit=2))
    cluster.settle(60)
    failed = cluster.condition("Failed")
    assert (failed["status"], failed["reason"]) == ("True", "OutOfMemory")
    assert "Raise accelerator.memory" in failed["message"]
    assert cluster.crashes == 3


def test_an_eviction_is_told_and_its_progress_stays() -> None:
    cluster = JobCluster()
    while cluster.reached < 2:
        cluster.act()
        cluster.others_move()
    cluster.act()
    cluster.others_move(evict=True)
    cluster.act()
    assert cluster.condition("Complete")["reason"] == "Interrupted"
    assert "goes on where it was" in cluster.status["message"]
    assert cluster.status["progress"]["layer"] == 2
    assert cluster.events[-1] == "Normal Interrupted"
    cluster.settle()
    assert cluster.status["phase"] == "Complete"


@settings(max_examples=80, deadline=None)
@given(
    st.sets(st.integers(0, 40), max_size=12), st.sets(st.integers(0, 40), max_size=12),
    st.sampled_from(["Complete", "GateFailed"]),
)  # fmt: skip
def test_evictions_and_lost_status_at_any_step_lead_to_the_same_end(
    evictions: set[int], forgotten: set[int], outcome: str
) -> None:
    undisturbed = JobCluster(outcome=outcome)
    undisturbed.settle(80)
    cluster = JobCluster(outcome=outcome)
    for number in range(80):
        cluster.act()
        if number in forgotten and cluster.batch is not None and not cluster.batch.ended:
            # Another operator takes over, and the status was never written.
            cluster.status = {}
        cluster.others_move(number in evictions)
    cluster.act()
    assert end_state(cluster) == end_state(undisturbed)
    assert cluster.made == 1
    assert cluster.look().actions == ()


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({"weights": {"groupSize": 128}}, "InvalidSpec", "Write 64 or 32"),
        ({"output": "pvc://models"}, "InvalidSpec", "spec.output"),
        ({"output": "file:///a"}, "InvalidSpec", "one machine"),
        ({"calibration": {"dataset": "file:///a"}}, "InvalidSpec", "spec.calibration.dataset"),
        ({"model": {"source": "file:///a"}}, "InvalidSpec", "spec.model.source"),
        ({"methods": "awq"}, "InvalidSpec", "Did you mean method"),
        ({"accelerator": {"memory": "300Mi"}}, "DoesNotFit", "sampling `self` text"),
        ({"accelerator": {"memory": "768Mi"}}, "DoesNotFit", "fits with: calibration.dataset or"),
        ({"accelerator": {"memory": "17Gi"}}, "DoesNotFit", "the largest node that could take the pod, n1"),
        ({"pod": {"nodeSelector": {"a": "b"}}}, "", ""),
    ],
)  # fmt: skip
def test_a_refusal_says_why_and_starts_nothing(changes: dict[str, Any], reason: str, words: str) -> None:
    cluster = JobCluster(spec=job_spec(**changes))
    cluster.settle()
    accepted = cluster.condition("Accepted")
    if not reason:
        assert accepted["status"] == "True"
        return
    assert (accepted["status"], accepted["reason"]) == ("False", reason)
    assert words in accepted["message"]
    assert (cluster.status["phase"], cluster.made) == ("Refused", 0)
    assert cluster.condition("Stalled")["reason"] == reason
    assert "startTime" not in cluster.status
    cluster.spec, cluster.generation = job_spec(), 2
    cluster.settle()
    assert cluster.status["phase"] == "Complete"


def test_a_claim_that_is_too_small_is_refused_and_one_unseen_is_believed() -> None:
    small = JobCluster(claim=100 * MIB)
    small.settle()
    assert small.condition("Accepted")["reason"] == "DoesNotFit"
    assert "size of the claim" in small.condition("Accepted")["message"]
    assert small.made == 0
    assert small.look().again_in is not None
    small.claim = 64 * GIB
    small.settle()
    assert small.status["phase"] == "Complete"
    unseen = JobCluster(claim=None)
    unseen.settle()
    assert unseen.status["phase"] == "Complete"
    assert "claim" not in unseen.status["budget"]["disk"]
    seen = JobCluster()
    seen.settle()
    assert seen.status["budget"]["disk"]["claim"] == 64 * GIB


def test_kstatus_reads_every_phase_rightly() -> None:
    seen: dict[str, set[str]] = {}
    for cluster in (JobCluster(), JobCluster(outcome="GateFailed"), JobCluster(rivals=("first",))):
        assert kstatus(1, cluster.status) == "InProgress"
        for number in range(40):
            cluster.act()
            read = kstatus(1, cluster.status)
            assert argocd("QuantizationJob", 1, cluster.status) == HEALTH[read]
            seen.setdefault(cluster.status["phase"], set()).add(read)
            cluster.others_move(number == 8)
    ends = {"Complete": {"Current"}, "Failed": {"Failed"}, "Refused": {"Failed"}}
    assert {phase: found for phase, found in seen.items() if phase in ends} == ends
    assert all(found == {"InProgress"} for phase, found in seen.items() if phase not in ends)


def test_a_source_outside_the_allow_list_is_refused_before_any_pod() -> None:
    cluster = JobCluster(settings=Settings(allowed_sources=("hf://our-org/*",)))
    assert not cluster.act().actions
    assert cluster.condition("Accepted")["reason"] == "SourceNotAllowed"


@pytest.mark.parametrize("part", ["calibration", "evaluation"])
@pytest.mark.parametrize("dataset", ["hf://datasets/evil/texts", "hf://datasets/our-org-2/texts", "pvc://others/texts"])
def test_texts_outside_the_allow_list_are_refused_before_any_pod(part: str, dataset: str) -> None:
    listed = Settings(allowed_sources=("pvc://models/*", "hf://datasets/our-org/*"))
    cluster = JobCluster(spec=job_spec(**{part: {"dataset": dataset}}), settings=listed)
    cluster.settle()
    accepted = cluster.condition("Accepted")
    assert accepted["reason"] == "SourceNotAllowed"
    assert f"spec.{part}.dataset" in accepted["message"]
    assert dataset in accepted["message"]
    assert (cluster.made, cluster.inspector, cluster.children) == (0, None, {})


@pytest.mark.parametrize(
    "texts", [{"dataset": "self"}, {"configMap": "news"}, {"dataset": "hf://datasets/our-org/texts@main/a/train"}]
)
def test_texts_that_are_allowed_or_no_source_are_taken_and_the_output_is_not_held_to_the_list(texts: Any) -> None:
    listed = Settings(allowed_sources=("hf://org/*", "hf://datasets/our-org/*"))
    wish = job_spec(model={"source": "hf://org/model"}, calibration=texts, evaluation=texts)
    cluster = JobCluster(spec=wish, settings=listed)
    cluster.settle()
    assert cluster.status["phase"] == "Complete"


def test_an_output_that_is_anothers_is_refused() -> None:
    cluster = JobCluster(rivals=("first",))
    cluster.settle()
    assert cluster.condition("Accepted")["reason"] == "OutputTaken"
    assert "QuantizationJob first" in cluster.status["message"]
    assert cluster.made == 0


def test_a_job_waits_for_the_pods_of_an_earlier_one_of_its_name() -> None:
    left = Pod("old-1", "uid-old-1", owner="uid-old", phase="Running", deleting=True, node="n1")
    cluster = JobCluster(earlier=(BatchJob("demo-000000", "uid-old", "uid-0"),), pods=[left])
    cluster.settle(10)
    assert cluster.made == 0
    assert "pod old-1 of an earlier job" in cluster.status["message"]
    cluster.pods, cluster.earlier = [], ()
    cluster.settle()
    assert cluster.status["phase"] == "Complete"


@pytest.mark.parametrize("layers", [0, 2])
def test_a_job_that_is_suspended_from_outside_says_so_and_how_to_undo_it(layers: int) -> None:
    cluster = JobCluster()
    while cluster.batch is None or cluster.reached < layers:
        cluster.act()
        cluster.others_move()
    # The Job controller takes the pods away.
    cluster.batch = batch_job(
        {
            "metadata": {"name": cluster.batch.name, "uid": cluster.batch.uid, "ownerReferences": [
                {"kind": "QuantizationJob", "uid": cluster.uid, "controller": True}]},
            "spec": {"suspend": True},
            "status": {"conditions": [{"type": "Suspended", "status": "True", "reason": "JobSuspended"}]},
        }
    )  # fmt: skip
    cluster.pods = []
    cluster.act()
    assert (cluster.status["phase"], cluster.condition("Complete")["reason"]) == ("Pending", "Suspended")
    undo = f"kubectl patch job {cluster.batch.name} -n ns -p " + """'{"spec":{"suspend":false}}'"""
    assert undo in cluster.status["message"]
    assert kstatus(1, cluster.status) == "InProgress"
    writes = cluster.writes
    cluster.act()
    assert cluster.writes == writes
    cluster.batch = replace(cluster.batch, suspended=False)
    cluster.settle()
    assert (cluster.made, cluster.status["phase"], cluster.reached) == (1, "Complete", LAYERS)


def test_a_spec_that_is_corrected_before_it_started_makes_its_job_anew() -> None:
    cluster = JobCluster()
    while cluster.batch is None:
        cluster.act()
        cluster.others_move()
    first = cluster.batch.name
    cluster.spec, cluster.status, cluster.generation = job_spec(seed=1), {}, 2
    cluster.settle()
    assert (cluster.made, cluster.status["phase"]) == (2, "Complete")
    assert cluster.status["job"] != first


def test_a_deleted_job_goes_on_where_it_was() -> None:
    cluster = JobCluster()
    while cluster.reached < 2:
        cluster.act()
        cluster.others_move()
    cluster.batch, cluster.pods = None, []
    cluster.settle()
    assert (cluster.made, cluster.status["phase"]) == (2, "Complete")


def test_a_policy_that_is_taken_away_is_put_back() -> None:
    cluster = JobCluster()
    while cluster.reached < 1:
        cluster.act()
        cluster.others_move()
    del cluster.children["NetworkPolicy", "demo-quantize"]
    cluster.act()
    assert ("NetworkPolicy", "demo-quantize") in cluster.children


@pytest.mark.parametrize("outcome", ["Complete", "GateFailed"])
def test_a_pod_that_has_ended_for_good_has_not_crashed_before_its_job_says_so(outcome: str) -> None:
    cluster = JobCluster(outcome=outcome)
    while cluster.batch is None or not cluster.batch.ended:
        cluster.act()
        cluster.others_move()
    cluster.batch = replace(cluster.batch, ended="", reason="", message="")
    cluster.act()
    assert cluster.condition("Complete")["reason"] == "Ending"
    assert not {"Warning Crashed", "Normal Crashed", "Normal Interrupted"} & set(cluster.events)


def test_a_pod_that_cannot_start_is_quoted() -> None:
    cluster = JobCluster()
    while not cluster.pods:
        cluster.act()
        cluster.others_move()
    waits = Container("quantize", state="waiting", reason="ImagePullBackOff", message="no such image")
    cluster.pods[-1] = replace(cluster.pods[-1], containers=(waits,))
    cluster.act()
    assert cluster.condition("Complete")["reason"] == "ImagePull"
    assert "no such image" in cluster.status["message"]
    cluster.pods[-1] = replace(cluster.pods[-1], containers=(), node=None, unschedulable="0/1 nodes are available")
    cluster.act()
    assert "Unschedulable: pod" in cluster.status["message"]


def test_what_is_on_its_way_out_is_left_alone() -> None:
    cluster = JobCluster()
    snapshot = cluster.snapshot()
    gone = replace(snapshot, deployment=replace(snapshot.deployment, deleting=True))
    assert plan_job(gone, cluster.settings).actions == ()


def test_the_same_look_gives_the_same_status() -> None:
    cluster = JobCluster()
    for _ in range(30):
        while cluster.act().actions:
            pass
        again = cluster.look()
        assert not again.actions
        assert not again.status or json.loads(json.dumps(again.status)) == cluster.status
        assert again.events == ()
        cluster.others_move()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "10s"), (44, "40s"), (119, "120s"), (170, "3m"), (3599, "1h"), (7300, "2h"), (9000, "2h30m")],
)
def test_what_is_left_is_said_coarsely(seconds: float, text: str) -> None:
    assert duration(seconds) == text
