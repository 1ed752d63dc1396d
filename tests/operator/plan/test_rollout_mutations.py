"""Each rule of a rollout broken on purpose: the small world of test_rollout must notice every one."""

import pytest

from plimsoll.operator.plan import rollout
from tests.operator.plan import test_rollout as worlds
from tests.support.mutations import broken

#: What a rule is: (the source that keeps it, what breaks it).
RULES = {
    "old ones stay while new ones do not serve": (
        "max(0, desired - new.available))",
        "max(0, desired - target))",
    ),
    "pods that end do not count as serving": (
        "pod.ready and pod.routable and not pod.deleting for pod",
        "pod.node is not None for pod",
    ),
    "a surge needs a free device": (
        "if free > 0:",
        "if free >= 0 and grow:",
    ),
    "without a device one is drained": (
        (
            "    old -= min(wave, old, desired - target)\n"
            "    return Step(_targets(new, target, others, old), Stage.REPLACING)\n"
            "\n"
            "\n"
            "def _stand"
        ),
        ("    return Step(_targets(new, target, others, old), Stage.REPLACING)\n\n\ndef _stand"),
    ),
    "Replace never asks for more than wanted": (
        ("            old -= min(wave, old, desired - target)\n        return"),
        ("            target += 1\n        return"),
    ),
    "Replace makes way when fewer are wanted": (
        "        if over > 0 and new.unplaced and not leaving:",
        "        if False:",
    ),
    "Replace drains": (
        ("            old -= min(wave, old, desired - target)\n        return"),
        ("            pass\n        return"),
    ),
    "Surge never drains ahead": (
        "        target += max(0, min(grow, wave - max(0, over)))",
        ("        old -= min(1, old)\n        target += max(0, min(grow, wave - max(0, over)))"),
    ),
    "places that were left are taken": (
        "    if vacated > 0:",
        "    if vacated > 99:",
    ),
    "a stuck surge makes way": (
        ("        if not room:\n            old ="),
        ("        if False:\n            old ="),
    ),
    "the scheduler is believed in the end": (
        "> PATIENCE or new.set.blocked",
        "> 1e9",
    ),
    "a failure gives everything back": (
        "    targets[back_to.set.name] += rest",
        "    targets[back_to.set.name] = back_to.set.replicas",
    ),
    "a failed revision keeps only what serves": (
        "    targets[new.set.name] = available",
        "    targets[new.set.name] = new.set.replicas",
    ),
    "what serves beside a failed revision goes on": (
        "= min(old.available, rest)",
        "= 0",
    ),
    "a pod that nobody ends is waited for no longer": (
        "    new, others = new.known(now), [old.known(now) for old in others]\n",
        "",
    ),
    "a pod that ends is waited for": (
        "< now - LOST",
        "< now + 1e9",
    ),
    "one goes back to the latest that served": (
        "key=lambda old: old.set.number)",
        "key=lambda old: -old.set.number)",
    ),
    "a wave is bounded": (
        "    wave = max(1, -(-desired // 4))",
        "    wave = max(1, desired)",
    ),
    "others are ended once the new one serves": (
        "keep = min(old, most(revision) - targets[revision.set.name])",
        "keep = most(revision) - targets[revision.set.name]",
    ),
    "what serves is kept before what may": (
        "(lambda r: min(r.worth, r.available), lambda r: r.worth)",
        "(lambda r: r.worth,)",
    ),
    "pods that only end keep nothing from being complete": (
        "sum(pod.deleting and not pod.ended",
        "sum(False and not pod.ended",
    ),
    "it is complete only when all serve": (
        "new.available == desired and",
        "",
    ),
}

SCENARIOS = [
    worlds.test_a_first_revision_gets_every_replica_at_once,
    worlds.test_with_a_free_device_the_new_one_serves_before_the_old_one_goes,
    lambda: worlds.test_without_one_the_old_one_drains_and_makes_way(True),
    lambda: worlds.test_without_one_the_old_one_drains_and_makes_way(False),
    worlds.test_fewer_wanted_in_the_middle_of_a_replacement_still_ends,
    lambda: worlds.test_replacing_takes_one_wave_at_a_time("Auto"),
    lambda: worlds.test_replacing_takes_one_wave_at_a_time("Replace"),
    worlds.test_surge_waits_for_a_device_and_never_drains_first,
    worlds.test_a_failing_revision_stops_and_the_old_one_serves_on,
    worlds.test_a_failing_revision_gives_the_only_device_back,
    worlds.test_a_failed_revision_goes_back_to_the_one_that_served_last,
    worlds.test_a_quota_that_refuses_pods_counts_as_no_room,
    worlds.test_a_scheduler_that_says_no_for_long_is_believed_over_the_count_of_devices,
    worlds.test_it_is_complete_only_when_all_serve,
    worlds.test_pods_that_only_end_keep_nothing_from_being_complete,
    worlds.test_what_serves_is_kept_before_what_only_may,
    worlds.test_what_serves_goes_on_where_a_third_change_fails_before_the_second_was_over,
    lambda: worlds.test_a_pod_that_nobody_ends_holds_a_rollout_up_for_its_time_and_no_longer("Auto"),
    lambda: worlds.test_a_pod_that_nobody_ends_holds_a_rollout_up_for_its_time_and_no_longer("Replace"),
]


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_noticed(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutated = broken(rollout, *RULES[rule])
    for name in ("next_step", "Revision", "Step", "Stage"):
        monkeypatch.setattr(worlds, name, mutated.__dict__[name])
    for scenario in SCENARIOS:
        try:
            scenario()
        except (Exception, BaseExceptionGroup, pytest.fail.Exception):
            return
    pytest.fail(f"nothing noticed that this rule is broken: {rule}")
