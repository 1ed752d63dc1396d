"""Events: one for each change that a person would want to read about, none for what stays."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from plimsoll.operator.actions import Event
from plimsoll.operator.plan.rollout import Stage

#: Which truth of a condition is bad news. For Progressing only the reason counts.
_BAD = {"Accepted": "False", "SourceReady": "False", "Degraded": "True", "Failed": "True"}
_TOLD = ("Accepted", "SourceReady", "Progressing", "Ready", "Degraded", "Complete", "Failed")
#: Reasons that a list of events need not repeat: another condition's transition says the same.
_QUIET = frozenset({
    "Inspecting", "NotLookedAt", "AsExpected", "NotReady", "SourceUnreadable", "NotStarted", "NotFailed", "Ending",
})  # fmt: skip
#: Reasons why a pod waits. They become events where no other condition has that reason.
_WAITS = frozenset({"Unschedulable", "FailedMount", "ContainerConfig", "PodsRefused", "ImagePull", "Evicted"})
#: Words of a wait that somebody has to end; an image that is being pulled is none.
_FAILING = re.compile(r"not found|non-existent|[Ee]rror|[Ff]ail|[Bb]ack-off|denied|forbidden")
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
        if kind == "SourceReady" and reason == "Inspecting":
            yield from _inspect_pod_waits(was, condition)
            continue
        if kind not in _TOLD or reason in _QUIET or (was.get("status"), was.get("reason")) == (truth, reason):
            continue
        if kind == "Ready" and truth != "True" and was.get("status") != "True":
            # Not ready for another reason than before: Degraded or Progressing tell it if it matters.
            if reason in _WAITS and not _told_elsewhere(reason, after):
                yield Event("Warning", reason, condition["message"][:900])
            continue
        if kind == "Progressing" and reason not in _STEPS:
            continue
        if not before and (kind, truth) in (("SourceReady", "True"), ("Progressing", "True")):
            # Of a deployment that is new, whether it is accepted says both.
            continue
        if (kind, truth) == ("Failed", "False") or (kind == "Complete" and _failed(after)):
            # The other of the two tells it.
            continue
        bad = (truth == _BAD.get(kind) and reason not in _EXPECTED) or reason == "RolloutFailed"
        bad = bad or (kind == "Ready" and truth == "False")
        yield Event("Warning" if bad else "Normal", reason, condition["message"][:900])


def _told_elsewhere(reason: str, after: Sequence[Mapping[str, Any]]) -> bool:
    return any(one["type"] in _TOLD and one["type"] != "Ready" and one["reason"] == reason for one in after)


def _inspect_pod_waits(was: Mapping[str, Any], condition: Mapping[str, Any]) -> Iterator[Event]:
    """What the inspect pod waits for, each time that it is something else."""
    words = condition["message"]
    waits = "finds no node" in words or ("The inspect pod waits" in words and _FAILING.search(words))
    if waits and was.get("message") != words:
        yield Event("Normal", "Inspecting", words[:900])


def _failed(after: Sequence[Mapping[str, Any]]) -> bool:
    return any(one["type"] == "Failed" and one["status"] == "True" for one in after)
