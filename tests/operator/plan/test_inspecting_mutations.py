"""Each rule about inspect pods broken on purpose: a test must notice every one."""

import pytest

from plimsoll.operator.plan import inspecting, planner
from tests.operator.plan import test_inspecting, test_planner
from tests.support.mutations import broken, notices

#: What a rule is: (the source that keeps it, what breaks it).
RULES = {
    "an inspection is recorded": ("[Record(looking.key)] if looking.pod is not None else []", "[]"),
    "a look that failed is repeated": ("    if wait != 0.0:", "    if True:"),
    "what gives way is deleted": (', Delete("Pod", there.name, "another looks in its place")]', "]"),
    "looks at a source that fails grow rarer": ("max(RETRY_LEAST, failing_for)", "RETRY_LEAST"),
    "what is on its way out is left alone": ("None if there.deleting else _wait", "_wait"),
    "a new deployment has changed nothing": ("0 < observed < snapshot", "observed < snapshot"),
    "a changed spec tries at once": ("0.0 if corrected else pause", "pause"),
    "a changed spec does not wait for its own stuck pod": ("build.LEAST_PATIENCE if corrected else patience", "1e9"),
    "a moment is left though the spec has changed": ("build.LEAST_PATIENCE if corrected else", "0.0 if corrected else"),
    "a pod that would look alike is waited for": ("there.looks_as == wanted or _at_work(there)", "_at_work(there)"),
    "a pod at work is left alone": ("there.looks_as == wanted or _at_work(there)", "there.looks_as == wanted"),
    "one that copies is at work": ("any(one.state != ", "False and any(one.state != "),
    "an image may take its time": ("creating(pod) and not pod.stuck", "False"),
    "what is missing does not come": ("creating(pod) and not pod.stuck", "creating(pod)"),
    "another may look before its turn comes again": ("min(pause, patience)", "pause"),
    "patience grows": ("    patience = there.patience or build.LEAST_PATIENCE", "    patience = build.LEAST_PATIENCE"),
}
#: The test that notices it: with each set of its parameters.
NOTICED_BY = {
    "an inspection is recorded": test_planner.test_from_nothing_to_ready_by_way_of_an_inspection,
    "a look that failed is repeated": test_inspecting.test_a_pod_that_ended_well_and_left_no_report_is_a_failure,
    "what gives way is deleted": test_inspecting.test_a_pod_that_ended_well_and_left_no_report_is_a_failure,
    "looks at a source that fails grow rarer": test_planner.test_a_source_that_cannot_be_read_is_quoted_and_tried_again,
    "what is on its way out is left alone": test_inspecting.test_a_pod_on_its_way_out_is_left_alone,
    "a new deployment has changed nothing": test_inspecting.test_a_deployment_that_is_new_waits_as_long_as_the_others,
    "a changed spec tries at once": (
        test_inspecting.test_a_look_that_failed_is_repeated_at_once_when_the_spec_changes_and_then_waits
    ),
    "a changed spec does not wait for its own stuck pod": (
        test_inspecting.test_a_pod_that_has_just_been_made_is_left_a_moment
    ),
    "a moment is left though the spec has changed": test_inspecting.test_a_pod_that_has_just_been_made_is_left_a_moment,
    "a pod that would look alike is waited for": test_inspecting.test_another_change_leaves_a_pod_that_waits_as_it_is,
    "a pod at work is left alone": test_inspecting.test_a_pod_that_is_at_work_is_left_to_its_end,
    "one that copies is at work": test_inspecting.test_a_pod_that_is_at_work_is_left_to_its_end,
    "an image may take its time": test_inspecting.test_a_pod_that_is_at_work_is_left_to_its_end,
    "what is missing does not come": test_inspecting.test_a_spec_that_is_corrected_looks_anew_at_once,
    "another may look before its turn comes again": test_inspecting.test_two_that_both_fail_take_turns_ever_more_rarely,
    "patience grows": test_inspecting.test_two_that_both_fail_take_turns_ever_more_rarely,
}


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_noticed(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutated = broken(inspecting, *RULES[rule])
    monkeypatch.setattr(planner, "inspecting", mutated.__dict__["inspecting"])
    assert notices(NOTICED_BY[rule])


def test_nothing_is_noticed_where_no_rule_is_broken() -> None:
    assert not any(notices(test) for test in set(NOTICED_BY.values()))
