"""Each rule of the planner broken on purpose: the cluster in miniature must notice every one."""

import pytest

from plimsoll.operator.plan import planner
from tests.operator.plan import test_draining, test_free_memory, test_lingering, test_planner, test_standing
from tests.support import miniature
from tests.support.mutations import broken, notices

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
        ("        elif target != new.replicas:\n            yield Scale"),
        ("        elif False:\n            yield Scale"),
    ),
    "old revisions are scaled": (
        "            if targets[old.set.name] != old.set.replicas:",
        "            if False:",
    ),
    "history is bounded": (
        "idle[: max(0, len(idle) - HISTORY)]",
        "idle[:0]",
    ),
    "a cordoned node gets a second replica": (
        "        targets = {**step.replicas, one.set.name: found.replicas}",
        "        targets = dict(step.replicas)",
    ),
    "an only replica without another place is let go": (
        "let_go=self.evacuation.let_go",
        "let_go=False",
    ),
    "more than are wanted for a drain's sake is no rollout": (
        "        stage = Stage.COMPLETE if settled else step.stage",
        "        stage = step.stage",
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
        '        return max(0, room(live["spec"]["template"]) - unplaced)',
        '        return max(0, room(live["spec"]["template"]))',
    ),
}

#: The test that notices it: with each set of its parameters.
NOTICED_BY = {
    "what is on its way out is left alone": test_planner.test_a_deployment_on_its_way_out_gets_nothing_new,
    "nothing starts before it is accepted": test_planner.test_an_unchanged_cluster_is_left_alone,
    "a missing child is made": test_planner.test_a_cordoned_node_gets_a_second_replica_before_the_first_may_go,
    "a changed child is put back": test_planner.test_what_others_change_of_ours_is_put_back_and_what_they_add_is_left,
    "a bad revision is given up": test_planner.test_a_loading_pod_that_moves_is_never_given_up_and_one_that_does_not_is,
    "and marked, so that a restart knows": (
        test_planner.test_a_loading_pod_that_moves_is_never_given_up_and_one_that_does_not_is
    ),
    "a revision that served is marked": (
        test_planner.test_a_loading_pod_that_moves_is_never_given_up_and_one_that_does_not_is
    ),
    "a revision gone back to is forgiven": test_planner.test_a_bad_revision_stops_and_its_own_words_are_quoted,
    "others' templates are left alone": test_planner.test_another_operator_version_leaves_templates_alone,
    "replicas are put back": test_planner.test_another_operator_version_leaves_templates_alone,
    "old revisions are scaled": test_planner.test_history_is_kept_short,
    "history is bounded": test_planner.test_history_is_kept_short,
    "a cordoned node gets a second replica": (
        test_draining.test_after_a_failed_rollout_what_was_gone_back_to_is_evacuated_as_well
    ),
    "an only replica without another place is let go": test_draining.test_a_successor_that_cannot_serve_ends_the_wait,
    "more than are wanted for a drain's sake is no rollout": (
        test_draining.test_a_node_that_stays_cordoned_is_no_rollout_without_end
    ),
    "what is gone back to is evacuated too": (
        test_draining.test_after_a_failed_rollout_what_was_gone_back_to_is_evacuated_as_well
    ),
    "what serves a refused spec is held": (
        test_draining.test_a_rollout_that_a_refusal_caught_half_way_is_left_as_it_is_until_nothing_is_wanted
    ),
    "what runs stays accepted": test_standing.test_what_serves_stays_accepted_whatever_happens_around_it,
    "a rollout looks again when nobody ends a pod": (
        test_lingering.test_a_rollout_beside_a_pod_that_nobody_ends_looks_again_when_it_may_go_on
    ),
    "pods that ended are told from those that are missed": (
        test_lingering.test_an_eviction_says_so_until_another_pod_is_there
    ),
    "room is what is free": test_free_memory.test_a_pod_of_the_new_revision_that_waits_takes_the_room_that_is_counted,
}


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_noticed(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutated = broken(planner, *RULES[rule])
    for module in (miniature, test_planner):
        monkeypatch.setattr(module, "plan", mutated.__dict__["plan"])
    assert notices(NOTICED_BY[rule])


def test_nothing_is_noticed_where_no_rule_is_broken() -> None:
    assert not any(notices(test) for test in set(NOTICED_BY.values()))
