"""Events: one for each change that a person would want to read about, none for what stays."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from plimsoll.operator.actions import Event
from plimsoll.operator.plan.rollout import Stage

#: Which truth of a condition is bad news. Progressing is told by its reason alone.
_BAD = {"Accepted": "False", "SourceReady": "False", "Degraded": "True", "Failed": "True"}
_TOLD = ("Accepted", "SourceReady", "Progressing", "Ready", "Degraded", "Complete", "Failed")
#: Reasons that a list of events need not repeat: another condition's transition says the same.
_QUIET = frozenset({
    "Inspecting", "NotLookedAt", "AsExpected", "NotReady", "SourceUnreadable", "NotStarted", "NotFailed", "Ending",
})  # fmt: skip
#: Not as wanted yet, and nothing that anybody need look into.
_EXPECTED = frozenset({"WaitingForQuantization"})
#: Steps of a rollout; what else Progressing says, other conditions say better.
_STEPS = frozenset({stage.value for stage in Stage} - {Stage.COMPLETE.value})


def transitions(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> tuple[Event, ...]:
    """Events for conditions whose status or reason changed."""
    return tuple(_changed({one["type"]: one for one in before}, after))


def _changed(before: Mapping[str, Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Iterator[Event]:
    for condition in after:
        kind, truth, reason = condition["type"], condition["status"], condition["reason"]
        was = before.get(kind, {})
        if kind not in _TOLD or reason in _QUIET or (was.get("status"), was.get("reason")) == (truth, reason):
            continue
        if kind == "Ready" and truth != "True" and was.get("status") != "True":
            # Not ready for another reason than before: Degraded or Progressing tell it if it matters.
            continue
        if kind == "Progressing" and reason not in _STEPS:
            continue
        if not before and (kind, truth) in (("SourceReady", "True"), ("Progressing", "True")):
            # Of a deployment that nobody has seen before, whether it is accepted says both.
            continue
        if (kind, truth) == ("Failed", "False") or (kind == "Complete" and _failed(after)):
            # The other of the two tells it.
            continue
        bad = (truth == _BAD.get(kind) and reason not in _EXPECTED) or reason == "RolloutFailed"
        bad = bad or (kind == "Ready" and truth == "False")
        yield Event("Warning" if bad else "Normal", reason, condition["message"][:900])


def _failed(after: Sequence[Mapping[str, Any]]) -> bool:
    return any(one["type"] == "Failed" and one["status"] == "True" for one in after)
