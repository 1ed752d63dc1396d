"""The pod that looks at a source: when it is made, and when another takes its place.

All who name one source share the pod, and each would make it a little differently: another image, other tolerations.
One that cannot get to work gives way to another's, and each that does so is left more time than the one before, so
that two who both fail take turns ever more rarely.
"""

from collections.abc import Iterator

from plimsoll.operator import build
from plimsoll.operator.actions import Action, Apply, Delete, Record
from plimsoll.operator.plan.admission import Asked
from plimsoll.operator.plan.conditions import condition_of
from plimsoll.operator.plan.trouble import creating
from plimsoll.operator.settings import Settings
from plimsoll.operator.shape import timestamp
from plimsoll.operator.snapshot import Pod, Snapshot

#: Seconds between two looks at a source that could not be read.
RETRY_LEAST, RETRY_MOST = 20.0, 600.0


def inspecting(snapshot: Snapshot, admission: Asked, settings: Settings) -> tuple[list[Action], float | None]:
    """What brings the source's headers, until what was found is recorded; and the seconds after which that may be
    something else, None where time alone changes nothing."""
    looking = snapshot.inspecting
    if admission.spec is None:
        return [], None
    if looking is not None and looking.found is not None:
        return [Record(looking.key)] if looking.pod is not None else [], None
    if not admission.needs_inspection:
        return [], None
    there = looking.pod if looking is not None else None
    made = build.inspect_pod(
        snapshot.deployment, admission.spec, settings, snapshot.image_volumes, looking.key if looking else None,
        instead_of=there,
    )  # fmt: skip
    actions = list(_policy(snapshot))
    if there is None:
        return [*actions, Apply(made, "read the checkpoint's headers")], None
    wait = None if there.deleting else _wait(snapshot, there, build.looks_as(made))
    if wait != 0.0:
        return actions, wait
    # In this order: in between others would find none, and make theirs.
    return [*actions, Apply(made, "look again"), Delete("Pod", there.name, "another looks in its place")], None


def _policy(snapshot: Snapshot) -> Iterator[Action]:
    policy = build.inspect_policy(snapshot.deployment.namespace)
    live = snapshot.children.get(("NetworkPolicy", policy["metadata"]["name"]))
    if live is None or build.differs(policy, live):
        yield Apply(policy, "inspect pods reach only what they read")


def _wait(snapshot: Snapshot, there: Pod, wanted: str) -> float | None:
    """Seconds until a pod of the spec `wanted` takes the place of the one that is `there`; None while that is at work,
    or waits as this one would."""
    observed = snapshot.deployment.status.get("observedGeneration") or 0
    corrected = 0 < observed < snapshot.deployment.generation
    age = snapshot.now - there.created
    patience = there.patience or build.LEAST_PATIENCE
    if there.ended:
        pause = _pause(snapshot, there)
        wait = 0.0 if corrected else pause if there.looks_as == wanted else min(pause, patience)
    elif there.looks_as == wanted or _at_work(there):
        return None
    else:
        wait = build.LEAST_PATIENCE if corrected else patience
    return max(0.0, wait - age)


def _at_work(pod: Pod) -> bool:
    """Or on its way there: an image may take minutes, and the kubelet ends what takes for ever."""
    ours = [one for one in pod.containers if one.ours]
    # An injected sidecar may run while the image of ours cannot be pulled.
    begun = any(one.state != "waiting" or one.restarts for one in ours) if ours else pod.phase != "Pending"
    return begun or (creating(pod) and not pod.stuck)


def _pause(snapshot: Snapshot, failed: Pod) -> float:
    """Seconds from one look that failed to the next: as long again as the source had been failing, within bounds."""
    since = condition_of(snapshot.deployment.status, "SourceReady").get("lastTransitionTime")
    failing_for = failed.created - timestamp(since) if since else 0.0
    return min(RETRY_MOST, max(RETRY_LEAST, failing_for))
