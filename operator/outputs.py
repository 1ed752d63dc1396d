"""Which output of a quantization job a deployment serves: the job's, or while it has none, what served before.

Derived from what is there: the job's status, and the annotations of the deployment's ReplicaSets.
"""

from collections.abc import Iterable

from plimsoll.operator.snapshot import Output, Quantizing, ReplicaSet


def output_of(job: str, quantizing: Quantizing | None, replica_sets: Iterable[ReplicaSet]) -> Output | None:
    """What deployments of `job` serve now.

    A job that runs, failed or is gone takes nothing away: the newest revision that was made of an earlier one's output
    and was not given up goes on.
    """
    if quantizing is not None and quantizing.output is not None:
        return quantizing.output
    kept = [one for one in replica_sets if one.output is not None and one.output.job == job and one.failure is None]
    newest = max(kept, key=lambda one: (one.number, one.name), default=None)
    return newest.output if newest else None
