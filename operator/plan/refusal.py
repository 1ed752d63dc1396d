"""What is said when the cluster has not taken all that was to be applied."""

from dataclasses import replace

from plimsoll.operator.actions import Event, Plan
from plimsoll.operator.plan.conditions import Condition, column, written
from plimsoll.operator.plan.quota import with_help
from plimsoll.operator.plan.transitions import transitions
from plimsoll.operator.snapshot import Deployment


def refused(plan: Plan, words: str, deployment: Deployment, now: float, *, taken: bool = False) -> Plan:
    """`plan` with a status and events that tell it.

    What was observed stays: replicas that serve do so without a monitor as well. Where something is not ready, a name
    that is taken is the reason to name, since nothing but a person changes that.

    Args:
        words: the API server's own, or those that name what has the name.
        taken: somebody else's object has a name that ours would have.
    """
    before = deployment.status.get("conditions", ())
    text = words if taken else f"The cluster does not take what this {deployment.kind} needs: {with_help(words)}"
    conditions = {one["type"]: one for one in plan.status["conditions"] if one["type"] != "Reconciling"}
    stalled = Condition("Stalled", "True", "NameTaken" if taken else "Refused", text)
    found, reason = [stalled], stalled.reason
    aim = conditions.get("Ready") or conditions.get("Complete")
    if taken and aim and aim["status"] != "True":
        found.append(Condition(aim["type"], "False", reason, text))
    if conditions.get("Degraded", {}).get("status") == "False":
        found.append(Condition("Degraded", "True", reason, text))
    conditions |= {one["type"]: one for one in written(found, before, plan.status["observedGeneration"], now)}
    told = transitions(before, [one for one in conditions.values() if one["reason"] != reason])
    if all(one.get("reason") != reason for one in before):
        told = (*told, Event("Warning", reason, words))
    status = {**plan.status, "conditions": list(conditions.values())}
    if plan.status.get("phase") != "Refused":
        status["message"] = column(text)
        if "Degraded" in conditions:
            status["phase"] = "Degraded"
    return replace(plan, status=status, events=told)
