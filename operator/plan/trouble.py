"""What is wrong with pods, in the cluster's own words, and when that is the revision's fault."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from plimsoll.api.errors import SourceChangedError
from plimsoll.operator.plan.conditions import timestamp
from plimsoll.operator.plan.exits import ended
from plimsoll.operator.snapshot import Container, Node, Pod

#: Longest quotation of a container's last words in a condition.
MOST_WORDS = 700
#: Seconds in which what a pod refers to (a Secret, a claim) may still appear.
GRACE = 30.0
#: A container that ran for so long does not crash in a loop; the kubelet forgets earlier crashes by then as well.
LONG_RUN = 600.0

#: Seconds that creating a pod's containers takes without anybody having to ask why.
ASK_AFTER = 5.0

_CREATING = frozenset({"ContainerCreating", "PodInitializing"})
_PULL = frozenset({"ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"})
_CONFIG = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})


@dataclass(frozen=True)
class Trouble:
    """One pod that should serve and does not."""

    pod: str
    reason: str
    """ImagePull, OutOfMemory, SourceChanged, CrashLoop, Restarted, ContainerConfig, FailedMount, Stalled, Unready,
    NodeNotReady, Evicted or Unschedulable."""
    message: str
    fatal: bool
    """Waiting will not help: a rollout stops for it."""


def troubles(
    pods: Collection[Pod], deadline: float, now: float, nodes: Iterable[Node] | None = None
) -> tuple[Trouble, ...]:
    """What keeps `pods` from serving, the fatal first.

    Args:
        deadline: seconds in which something must have moved: a byte, a phase, readiness, a container.
        nodes: of the cluster, as far as they may be seen.
    """
    dead = {node.name: node for node in nodes or () if node.not_ready}
    replaced = any(pod.node and pod.node not in dead and not pod.deleting and not pod.ended for pod in pods)
    found: list[Trouble] = []
    for pod in pods:
        if pod.node in dead and not pod.ended and not pod.ready and not (pod.deleting and replaced):
            found.append(_on_dead_node(pod, dead[pod.node]))
        elif not pod.ready and not pod.deleting:
            found += _of(pod, deadline, now)
    return tuple(sorted(found, key=lambda trouble: not trouble.fatal))


def _on_dead_node(pod: Pod, node: Node) -> Trouble:
    """With what happens next: by default a pod is deleted five minutes after its node was lost."""
    since = f" since {timestamp(node.not_ready_at)}" if node.not_ready_at else ""
    text = f"its node {node.name} is NotReady{since} ({words(node.not_ready)})"
    if pod.deleting:
        text += (
            "; the pod is deleted, and stays until the node is back or its Node object is deleted; another replica "
            "starts once a node has room for it"
        )
    else:
        text += (
            "; if the node is not back within 5 minutes, the cluster deletes the pod, and another replica starts on a "
            "node that has room for it"
        )
    return Trouble(pod.name, "NodeNotReady", text, False)


def waits_unexplained(pod: Pod, now: float) -> bool:
    """Whether it has a node, its containers wait to be created, and nothing in the pod itself says for what."""
    return creating(pod) and now - pod.created >= ASK_AFTER


def creating(pod: Pod) -> bool:
    """Whether it is past the scheduler and none of its containers has begun."""
    begun = any(one.state != "waiting" or one.restarts for one in pod.containers)
    waits = any(one.reason in _CREATING and not one.message for one in pod.containers)
    return bool(pod.node and waits and not begun and not pod.deleting and not pod.ended and pod.page is None)


def words(text: str) -> str:
    """The end of what a container said, bounded, on one line's worth of spaces."""
    kept = " ".join(text.split())
    return kept if len(kept) <= MOST_WORDS else f"… {kept[-MOST_WORDS:]}"


def _of(pod: Pod, deadline: float, now: float) -> Iterator[Trouble]:
    if pod.phase == "Succeeded":
        # It was ended while its node went down: another is on its way.
        return
    if pod.phase == "Failed":
        yield Trouble(pod.name, "Evicted", words(pod.message) or "the pod failed", False)
        return
    if pod.unschedulable:
        yield Trouble(pod.name, "Unschedulable", words(pod.unschedulable), False)
        return
    if pod.stuck:
        # What is not there may come, though not many wait for it that long; what is slow comes by itself.
        missing = "not found" in pod.last_event or "non-existent" in pod.last_event
        fatal = missing and now - pod.created > GRACE
        if "olume" in pod.last_event:
            yield Trouble(pod.name, "FailedMount", words(pod.last_event), fatal)
        else:
            yield Trouble(pod.name, "ContainerConfig", words(pod.last_event), fatal)
        return
    for container in pod.containers:
        trouble = _container(pod, container, now)
        if trouble:
            yield trouble
            return
    last = next((one for one in pod.containers if one.restarts and not one.init and ended(one)), None)
    how = f"{last.name} {ended(last)}" if last else ""
    how += f": {words(last.last_message)}" if last and last.last_message else ""
    since = moved(pod)
    if pod.node and now - since > deadline:
        phase = pod.page.phase if pod.page and not pod.unready_at else "starting" if not pod.unready_at else "not ready"
        text = f"{phase}, and nothing has moved for {now - since:.0f} s (progressDeadline)"
        yield Trouble(pod.name, "Stalled", f"{text}; {how}" if how else text, True)
    elif last is not None:
        yield Trouble(pod.name, "Restarted", how, False)
    elif pod.unready_at:
        text = f"was ready until {timestamp(pod.unready_at)} and is not now"
        yield Trouble(pod.name, "Unready", f"{text}: {words(pod.unready)}" if pod.unready else text, False)


def moved(pod: Pod) -> float:
    """When something of it last changed for the better or the worse. A page that is read no more says what was."""
    containers = max((one.moved_at for one in pod.containers), default=0.0)
    return max(pod.created, pod.seen_since, pod.unready_at, containers, pod.page.moved_at if pod.page else 0.0)


def _container(pod: Pod, container: Container, now: float) -> Trouble | None:
    said = words(container.last_message or container.message)
    if container.state == "waiting" and container.reason in _PULL:
        return Trouble(pod.name, "ImagePull", f"{container.name}: {words(container.message) or container.reason}", True)
    if container.state == "waiting" and container.reason in _CONFIG:
        text = f"{container.name}: {words(container.message) or container.reason}"
        return Trouble(pod.name, "ContainerConfig", text, now - pod.created > GRACE)
    if "OOMKilled" in (container.reason, container.last_reason):
        text = f"{container.name} was killed for taking more memory than its limit: it {ended(container)}"
        return Trouble(pod.name, "OutOfMemory", f"{text}: {said}" if said else text, container.last_ran < LONG_RUN)
    changed = said.find(f"{SourceChangedError.REASON}: ")
    if changed >= 0:
        # Another attempt reads the same files.
        text = said[changed:].partition(": ")[2]
        return Trouble(pod.name, SourceChangedError.REASON, f"{container.name}: {text}", True)
    crashed = container.last_exit_code if container.state != "terminated" else container.exit_code
    looping = container.state == "waiting" and container.reason == "CrashLoopBackOff"
    if looping or (crashed and container.restarts >= 2 and container.last_ran < LONG_RUN):
        text = f"{container.name} {ended(container) or 'does not stay up'}"
        return Trouble(pod.name, "CrashLoop", f"{text}: {said}" if said else text, container.restarts >= 2)
    return None


def deadline_in(pods: Iterable[Pod], deadline: float, now: float) -> float | None:
    """Seconds until the first of `pods` that moves no more would be late; None when none is on its way."""
    left = [
        moved(pod) + deadline - now
        for pod in pods
        if pod.node and not pod.ready and not pod.deleting and pod.phase not in ("Succeeded", "Failed")
    ]
    waiting = [left_for for left_for in left if left_for > 0]
    return min(waiting, default=None)
