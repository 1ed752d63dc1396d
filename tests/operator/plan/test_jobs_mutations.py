"""Each rule of the jobs' planner broken on purpose: the cluster in miniature must notice every one."""

import pytest

from plimsoll.operator.plan import job_admission, job_run, job_status, jobs
from tests.operator.plan import test_jobs, test_last_words, test_lingering
from tests.support import job_miniature
from tests.support.mutations import broken, notices

#: What a rule is: (where it stands, the source that keeps it, what breaks it).
RULES = {
    "what is on its way out is left alone": (
        jobs, "    if snapshot.deployment.deleting:\n", "    if False:\n",
    ),
    "what has ended stays ended": (
        jobs, "    if finished(snapshot):", "    if False:",
    ),
    "a Job is made once": (jobs, "if run is None and admission.ok and", "if admission.ok and"),
    "a claim is looked at before anything starts": (
        job_admission, "        if known is not None:\n            check_disk",
        "        if False:\n            check_disk",
    ),
    "two never write to one place": (jobs, "and not held_up:", "and True:"),
    "a Job of another spec is none of this one": (
        jobs, "if (one.name, one.owner) == (name, uid)", "if one.owner == uid",
    ),
    "a Job of another object is none of this one": (
        jobs, "if one.owner == snapshot.deployment.uid and", "if",
    ),
    "a Job of a corrected spec goes": (jobs, 'yield Delete("Job", one.name, "the spec has changed")', "pass"),
    "a policy is put back": (
        jobs, "    if live is None or build.differs(policy, live):", "    if live is None and not snapshot.batch_jobs:",
    ),
    "an output that is another's is refused": (job_admission, "    if snapshot.rivals:", "    if False:"),
    "memory is worked out": (
        job_admission, "        check_memory(found.facts, needs, line or needs.memory, load, names)\n", "",
    ),
    "nodes are asked": (
        job_admission, "        _check_nodes(snapshot, spec, found.facts, load, needs)\n", "",
    ),
    "a failed gate has no output": (
        job_status, "    if run.complete and said.output is not None:", "    if said.output is not None:",
    ),
    "status is written when a reader would notice": (
        job_status, '    if done or progress != kept["progress"]:', "    if True:",
    ),
    "progress outlives its pod": (
        job_status, "    if said is None or run is None:\n        return kept",
        "    if said is None or run is None:\n        return {}",
    ),
    "last words are waited for": (job_run, "PATIENCE = 15.0", "PATIENCE = 0.0"),
    "last words outlive their pod": (job_run, "reversed([*gone, *pods])", "reversed(pods)"),
    "a lost report is read once more": (job_run, "if not pods and _first(snapshot, job):", "if False:"),
    "and once only": (job_run, "if not pods and _first(snapshot, job):", "if not pods:"),
    "and where no pod is left to read": (
        job_run, "if not pods and _first(snapshot, job):", "if _first(snapshot, job):",
    ),
    "the Job whose report was lost goes": (jobs, "if run.unheard and not mine.deleting:", "if False:"),
    "last words are of one Job": (job_run, "snapshot.parted if pod.owner == job.uid", "snapshot.parted"),
    "and not for ever": (job_run, "PATIENCE = 15.0", "PATIENCE = 1e9"),
    "a pod that was stopped has not crashed": (
        job_run, '"Interrupted" if _was_stopped(pod) else "Crashed"', '"Crashed"',
    ),
    "a pod that is ending is no pod at work": (
        job_run, "staying = [pod for pod in alive if not pod.deleting]", "staying = alive",
    ),
    "a pod that is ending hides none that is at work": (
        job_run, "staying = [pod for pod in alive if not pod.deleting]",
        "staying = [] if alive[-1].deleting else alive",
    ),
    "nobody knows how long a job takes that nothing works on": (
        job_status, "if run is not None and run.paused and", "if False and",
    ),
    "the gate's own reason is told": (
        job_run, '    if said is not None and said.phase == "Failed":\n', "    if False:\n",
    ),
    "a pod that is killed for memory says so": (
        job_run, '    if last is not None and container is not None and container.reason == "OOMKilled":\n',
        "    if False:\n",
    ),
}  # fmt: skip
#: The test that notices it: with each set of its parameters.
NOTICED_BY = {
    "what is on its way out is left alone": test_jobs.test_what_is_on_its_way_out_is_left_alone,
    "what has ended stays ended": test_jobs.test_a_finished_job_is_left_alone_when_everything_of_it_is_gone,
    "a Job is made once": test_jobs.test_events_tell_each_transition_once,
    "a claim is looked at before anything starts": (
        test_jobs.test_a_claim_that_is_too_small_is_refused_and_one_unseen_is_believed
    ),
    "two never write to one place": test_jobs.test_a_job_waits_for_the_pods_of_an_earlier_one_of_its_name,
    "a Job of another spec is none of this one": (
        test_jobs.test_a_spec_that_is_corrected_before_it_started_makes_its_job_anew
    ),
    "a Job of another object is none of this one": (
        test_jobs.test_a_job_waits_for_the_pods_of_an_earlier_one_of_its_name
    ),
    "a Job of a corrected spec goes": test_jobs.test_from_nothing_to_complete_by_way_of_an_inspection,
    "a policy is put back": test_jobs.test_a_policy_that_is_taken_away_is_put_back,
    "an output that is another's is refused": test_jobs.test_an_output_that_is_anothers_is_refused,
    "memory is worked out": test_jobs.test_a_refusal_says_why_and_starts_nothing,
    "nodes are asked": test_jobs.test_a_refusal_says_why_and_starts_nothing,
    "a failed gate has no output": test_jobs.test_a_failed_gate_is_failed_with_its_figures_and_has_no_output,
    "status is written when a reader would notice": test_jobs.test_the_status_is_written_when_a_reader_would_notice,
    "progress outlives its pod": test_jobs.test_an_eviction_is_told_and_its_progress_stays,
    "last words are waited for": test_last_words.test_last_words_that_come_late_are_waited_for,
    "last words outlive their pod": (test_last_words.test_a_pod_that_was_deleted_as_it_ended_counts_by_its_last_words),
    "a lost report is read once more": test_last_words.test_a_report_that_was_lost_is_read_by_one_more_pod,
    "and once only": test_last_words.test_a_report_that_is_lost_twice_is_a_failure,
    "and where no pod is left to read": test_last_words.test_a_pod_that_is_there_and_says_nothing_is_no_lost_report,
    "the Job whose report was lost goes": (test_last_words.test_a_report_that_was_lost_is_read_by_one_more_pod),
    "last words are of one Job": test_last_words.test_last_words_of_an_earlier_job_say_nothing_of_this_one,
    "and not for ever": test_last_words.test_a_report_that_was_lost_is_read_by_one_more_pod,
    "a pod that was stopped has not crashed": test_jobs.test_an_eviction_is_told_and_its_progress_stays,
    "a pod that is ending is no pod at work": (
        test_lingering.test_a_jobs_pod_that_is_ending_is_named_and_keeps_what_was_reached
    ),
    "a pod that is ending hides none that is at work": (
        test_lingering.test_what_a_jobs_pod_that_stays_says_counts_beside_one_that_ends
    ),
    "nobody knows how long a job takes that nothing works on": (
        test_lingering.test_a_jobs_pod_that_is_ending_is_named_and_keeps_what_was_reached
    ),
    "the gate's own reason is told": test_jobs.test_a_failed_gate_is_failed_with_its_figures_and_has_no_output,
    "a pod that is killed for memory says so": test_jobs.test_what_is_killed_for_memory_again_and_again_says_so,
}


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_noticed(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, before, after = RULES[rule]
    mutant = broken(module, before, after)
    # Whoever took a name from the module takes it from the mutant.
    for user in (jobs, job_miniature, test_jobs):
        for name, value in vars(mutant).items():
            if getattr(value, "__module__", None) == mutant.__name__ and name in vars(user):
                monkeypatch.setattr(user, name, value)
    assert notices(NOTICED_BY[rule])


def test_nothing_is_noticed_where_no_rule_is_broken() -> None:
    assert not any(notices(test) for test in set(NOTICED_BY.values()))
