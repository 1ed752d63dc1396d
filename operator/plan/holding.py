"""An earlier revision that serves while the spec is refused, or not understood yet."""

from collections.abc import Iterator, Mapping, Sequence

from plimsoll.operator import build, names
from plimsoll.operator.actions import Action, Apply, Scale
from plimsoll.operator.plan.rollout import Revision
from plimsoll.operator.snapshot import Snapshot


def desired_replicas(snapshot: Snapshot, otherwise: int) -> int:
    """The spec's replicas. `kubectl scale` and autoscalers may change them while other fields are invalid."""
    asked = snapshot.deployment.spec.get("replicas", 1)
    return asked if isinstance(asked, int) and not isinstance(asked, bool) and asked >= 0 else otherwise


def alone(snapshot: Snapshot, replicas: Mapping[str, int]) -> bool:
    """Whether no more than one pod is, or will be, behind the Service, and can be reached: a lost node would answer
    nothing for as long as a client waits.

    Args:
        replicas: of each revision, by its name, how many are wanted now.
    """
    there = [pod for pod in snapshot.pods if not pod.ended and pod.index in ("", names.LEADS)]
    lost = {node.name for node in snapshot.nodes or () if node.not_ready}
    return sum(replicas.values()) <= 1 and len(there) <= 1 and not any(pod.node in lost for pod in there)


def holding(snapshot: Snapshot, revisions: Sequence[Revision]) -> Iterator[Action]:
    """What serves stays reachable, is scaled, and leaves a node that is drained.

    No pod is made for a drain's sake: what room it would take is known of an accepted spec alone. So of one replica the
    only one may go. A rollout that was caught half way is left as it is, unless nothing is desired.
    """
    serving = [one for one in revisions if one.set.replicas]
    if not serving:
        return
    desired = desired_replicas(snapshot, sum(one.set.replicas for one in serving))
    deployment = snapshot.deployment
    scaled = len(serving) == 1 or not desired
    targets = {one.set.name: desired if scaled else one.set.replicas for one in serving}
    nodes = max(one.set.shape.nodes if one.set.shape else 1 for one in serving)
    for child in (
        build.service(deployment, leaders=snapshot.leaders, alone=alone(snapshot, targets)),
        build.disruption_budget(deployment, desired, nodes),
    ):
        live = snapshot.children.get((child["kind"], child["metadata"]["name"]))
        if live is None or build.differs(child, live):
            yield Apply(child, "missing" if live is None else "put back")
    for one in serving:
        if one.set.replicas != targets[one.set.name]:
            yield Scale(one.set.name, desired, "an earlier revision serves")
