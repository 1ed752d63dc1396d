"""Pure: from what is there to what to do and what to say."""

from plimsoll.api.quantization_job import QUANTIZATION_KIND
from plimsoll.operator.actions import Plan
from plimsoll.operator.plan import planner
from plimsoll.operator.plan.group_sets import with_groups
from plimsoll.operator.plan.groups import fold
from plimsoll.operator.plan.jobs import plan_job
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import Snapshot

__all__ = ["next_plan", "plan", "plan_job"]


def next_plan(snapshot: Snapshot, settings: Settings, version: str) -> Plan:
    """By the kind of what is looked at."""
    if snapshot.deployment.kind == QUANTIZATION_KIND:
        return plan_job(snapshot, settings)
    return plan(snapshot, settings, version)


def plan(snapshot: Snapshot, settings: Settings, version: str) -> Plan:
    """Of a ModelDeployment: the planner sees each group of pods as one pod."""
    return with_groups(snapshot, planner.plan(fold(snapshot), settings, version))
