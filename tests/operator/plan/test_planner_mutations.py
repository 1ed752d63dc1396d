"""Each rule of the planner broken on purpose: the cluster in miniature must notice every one."""

import pytest

from plimsoll.operator.plan import planner
from tests.operator.plan import test_draining, test_lingering, test_planner, test_standing
from tests.support import miniature
from tests.support.mutations import broken, notices, scenarios

#: What a rule is: (the source that keeps it, what breaks it).
RULES = {
    "what is on its way out is left alone": (
        "    if snapshot.deployment.deleting:",
        "    if False:",
    ),
    "nothing starts before it is accepted": (
        ("    if admission.ok:\n        assert"),
        ("    if admission.budget or True:\n        assert"),
    ),
    "a missing child is made": (
        ("            if live is None or build.differs(one, live):\n                yield Apply(one,"),
        ("            if live is not None and build.differs(one, live):\n                yield Apply(one,"),
    ),
    "a changed child is put back": (
        ("            if live is None or build.differs(one, live):\n                yield Apply(one,"),
        ("            if live is None:\n                yield Apply(one,"),
    ),
    "a bad revision is given up": (
        "        if fatal is None or known or",
        "        if True or fatal is None or known or",
    ),
    "and marked, so that a restart knows": (
        "            yield MarkFailed(new.name, new.failure)",
        "            pass",
    ),
    "a revision that served is marked": (
        "            yield MarkProven(new.name)",
        "            pass",
    ),
    "a revision gone back to is forgiven": (
        ("            if old.set.failure is not None:\n                yield MarkFailed(old.set.name, None)"),
        "            pass",
    ),
    "others' templates are left alone": (
        "        if new.built_by == self.version and live is not None and",
        "        if live is not None and",
    ),
    "replicas are put back": (
        ("        elif told != new.replicas:\n            yield Scale"),
        ("        elif False:\n            yield Scale"),
    ),
    "old revisions are scaled": (
        "            if told[old.set.name] != old.set.replicas:",
        "            if False:",
    ),
    "history is bounded": (
        "idle[: max(0, len(idle) - HISTORY)]",
        "idle[:0]",
    ),
    "a cordoned node gets a second replica": (
        "            told = {**self.step.replicas, one.set.name: found.told}",
        "            told = dict(self.step.replicas)",
    ),
    "an only replica without another place is let go": (
        "let_go=self.evacuation.let_go",
        "let_go=False",
    ),
    "more than are wanted for a drain's sake is no rollout": (
        "            stage = Stage.COMPLETE if settled else self.step.stage",
        "            stage = self.step.stage",
    ),
    "what is gone back to is evacuated too": (
        "for one in (self.new, *self.others) if one.set.replicas",
        "for one in (self.new,) if one.set.replicas",
    ),
    "what serves a refused spec is held": (
        "        actions += holding(snapshot, there)",
        "",
    ),
    "what runs stays accepted": (
        "    return standing(admission, new.set if new else None, snapshot), revision, new, tuple(others)",
        "    return admission, revision, new, tuple(others)",
    ),
    "a rollout looks again when nobody ends a pod": (
        "        times += [old.loses_in(self.snapshot.now) for old in self.others]\n",
        "",
    ),
    "pods that ended are told from those that are missed": (
        "        Revision.of(one, [pod for pod in snapshot.pods if pod.owner == one.uid], snapshot.now)\n",
        "        Revision(one, tuple(pod for pod in snapshot.pods if pod.owner == one.uid))\n",
    ),
    "room is what is free": (
        "    return max(0, free - unplaced)",
        "    return max(1, free - unplaced) + 1",
    ),
}

#: Whose scenarios notice it, where it is not the planner's own.
ELSEWHERE = {
    "a cordoned node gets a second replica": test_draining,
    "an only replica without another place is let go": test_draining,
    "more than are wanted for a drain's sake is no rollout": test_draining,
    "what is gone back to is evacuated too": test_draining,
    "what serves a refused spec is held": test_draining,
    "what runs stays accepted": test_standing,
    "a rollout looks again when nobody ends a pod": test_lingering,
    "pods that ended are told from those that are missed": test_lingering,
}
SCENARIOS = {
    module: scenarios(module, but=["test_any_history_ends_where_a_calm_one_would"])
    for module in (test_planner, test_draining, test_standing, test_lingering)
}


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_noticed(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutated = broken(planner, *RULES[rule])
    for module in (miniature, test_planner):
        monkeypatch.setattr(module, "plan", mutated.__dict__["plan"])
    monkeypatch.setattr(test_planner, "room_for", mutated.__dict__["room_for"])
    assert any(notices(scenario) for scenario in SCENARIOS[ELSEWHERE.get(rule, test_planner)]), rule


def test_nothing_is_noticed_where_no_rule_is_broken() -> None:
    assert not any(notices(scenario) for found in SCENARIOS.values() for scenario in found)
