"""Each rule of the jobs' planner broken on purpose: the cluster in miniature must notice every one."""

import pytest

from plimsoll.operator.plan import job_admission, job_run, job_status, jobs
from tests.operator.plan import test_jobs, test_lingering
from tests.support import job_miniature
from tests.support.mutations import broken, notices, scenarios

SCENARIOS = scenarios(
    test_jobs, test_lingering, but=["test_evictions_and_lost_status_at_any_step_lead_to_the_same_end"]
)
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
        job_admission, "        check_memory(found.facts, needs, line or needs.memory, load)\n", "",
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


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_noticed(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, before, after = RULES[rule]
    mutant = broken(module, before, after)
    # Whoever took a name from the module takes it from the mutant.
    for user in (jobs, job_miniature, test_jobs):
        for name, value in vars(mutant).items():
            if getattr(value, "__module__", None) == mutant.__name__ and name in vars(user):
                monkeypatch.setattr(user, name, value)
    assert any(notices(scenario) for scenario in SCENARIOS), rule


def test_nothing_is_noticed_where_no_rule_is_broken() -> None:
    assert not any(notices(scenario) for scenario in SCENARIOS)
