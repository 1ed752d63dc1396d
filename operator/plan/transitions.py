"""Events: one for each change that a person would want to read about, none for what stays."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from plimsoll.operator.actions import Event
from plimsoll.operator.plan.rollout import Stage

#: Which truth of a condition is bad news. Progressing is told by its reason alone.
_BAD = {"Accepted": "False", "SourceReady": "False", "Degraded": "True"}
_TOLD = ("Accepted", "SourceReady", "Progressing", "Ready", "Degraded")
#: Reasons that a list of events need not repeat: another condition's transition says the same.
_QUIET = frozenset({"Inspecting", "NotLookedAt", "AsExpected", "NotReady", "SourceUnreadable"})
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
        bad = truth == _BAD.get(kind) or reason == "RolloutFailed" or (kind == "Ready" and truth == "False")
        yield Event("Warning" if bad else "Normal", reason, condition["message"][:900])
