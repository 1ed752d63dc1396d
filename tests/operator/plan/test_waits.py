"""What keeps a pod waiting is told as an event, once, for `kubectl describe`."""

from typing import Any

from plimsoll.operator.actions import Event
from plimsoll.operator.plan.transitions import transitions


def condition(kind: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def test_a_wait_is_told_when_it_begins_and_when_it_becomes_another() -> None:
    starts = [condition("Ready", "False", "NotReady"), condition("Degraded", "False", "AsExpected")]
    waits = [condition("Ready", "False", "Unschedulable", "no GPU"), condition("Degraded", "False", "AsExpected")]
    mount = [condition("Ready", "False", "FailedMount", "no claim"), condition("Degraded", "False", "AsExpected")]
    assert transitions(starts, waits) == (Event("Warning", "Unschedulable", "no GPU"),)
    assert transitions(waits, waits) == ()
    assert [one.reason for one in transitions(waits, mount)] == ["FailedMount"]


def test_what_degraded_tells_is_not_told_twice() -> None:
    before = [condition("Ready", "False", "NotReady"), condition("Degraded", "False", "AsExpected")]
    after = [condition("Ready", "False", "FailedMount", "a"), condition("Degraded", "True", "FailedMount", "a")]
    assert len(transitions(before, after)) == 1


def test_what_an_inspect_pod_waits_for_is_told_where_somebody_has_to_end_it() -> None:
    reads = [condition("SourceReady", "Unknown", "Inspecting", "The inspect pod reads the checkpoint's headers.")]

    def told(words: str) -> list[str]:
        return [one.message for one in transitions(reads, [condition("SourceReady", "Unknown", "Inspecting", words)])]

    for words in ('The inspect pod waits: secret "hub" not found', "The inspect pod finds no node: 0/3 nodes"):
        assert told(words) == [words]
    assert told("The inspect pod waits: Pulling image x") == []
