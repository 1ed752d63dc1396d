"""An earlier revision that serves while the spec is refused, or not understood yet."""

from collections.abc import Iterator, Sequence

from plimsoll.operator import build
from plimsoll.operator.actions import Action, Apply, Scale
from plimsoll.operator.plan.rollout import Revision
from plimsoll.operator.snapshot import Snapshot


def desired_replicas(snapshot: Snapshot, otherwise: int) -> int:
    """The spec's replicas. `kubectl scale` and autoscalers may change them while other fields are invalid."""
    asked = snapshot.deployment.spec.get("replicas", 1)
    return asked if isinstance(asked, int) and not isinstance(asked, bool) and asked >= 0 else otherwise


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
    nodes = max(one.set.shape.nodes if one.set.shape else 1 for one in serving)
    for child in (
        build.service(deployment, leaders=snapshot.leaders),
        build.disruption_budget(deployment, desired, nodes),
    ):
        live = snapshot.children.get((child["kind"], child["metadata"]["name"]))
        if live is None or build.differs(child, live):
            yield Apply(child, "missing" if live is None else "put back")
    for one in serving:
        if one.set.replicas != desired and (len(serving) == 1 or not desired):
            yield Scale(one.set.name, desired, "an earlier revision serves")
