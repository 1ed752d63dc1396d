"""Builders: from values to the objects that should be there, ready for server-side apply. Pure; one concern a file."""

from plimsoll.operator.build.compare import differs
from plimsoll.operator.build.groups import group_key, group_policy, group_service, stateful_set
from plimsoll.operator.build.inspecting import (
    LEAST_PATIENCE,
    inspect_name,
    inspect_pod,
    looks_as,
    record,
)
from plimsoll.operator.build.monitors import monitors
from plimsoll.operator.build.policy import disruption_budget, inspect_policy, job_policy, network_policy
from plimsoll.operator.build.quantizing import job, job_name, memory_line
from plimsoll.operator.build.replica_set import described, replica_set, served
from plimsoll.operator.build.revision import restart_part, revision
from plimsoll.operator.build.service import service
from plimsoll.operator.build.source import of_draft, source_key

__all__ = [
    "LEAST_PATIENCE",
    "described",
    "differs",
    "disruption_budget",
    "group_key",
    "group_policy",
    "group_service",
    "inspect_name",
    "inspect_pod",
    "inspect_policy",
    "job",
    "job_name",
    "job_policy",
    "looks_as",
    "memory_line",
    "monitors",
    "network_policy",
    "of_draft",
    "record",
    "replica_set",
    "restart_part",
    "revision",
    "served",
    "service",
    "source_key",
    "stateful_set",
]
