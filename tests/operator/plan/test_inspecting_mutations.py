"""Each rule about inspect pods broken on purpose: a test must notice every one."""

import pytest

from plimsoll.operator.plan import inspecting, planner
from tests.operator.plan import test_inspecting, test_planner
from tests.support.mutations import broken, notices, scenarios

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
SCENARIOS = scenarios(test_inspecting, test_planner, but=["test_any_history_ends_where_a_calm_one_would"])


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_noticed(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutated = broken(inspecting, *RULES[rule])
    monkeypatch.setattr(planner, "inspecting", mutated.__dict__["inspecting"])
    assert any(notices(scenario) for scenario in SCENARIOS), rule


def test_nothing_is_noticed_where_no_rule_is_broken() -> None:
    assert not any(notices(scenario) for scenario in SCENARIOS)
