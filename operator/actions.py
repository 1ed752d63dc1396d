"""What the planner wants done. Values only: `apply` carries them out, in order."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from plimsoll.operator.snapshot import Failure


@dataclass(frozen=True)
class Apply:
    """Server-side apply of a whole object; its owner reference is in it."""

    object: Mapping[str, Any]
    why: str = ""

    @property
    def makes_pods(self) -> bool:
        return self.object["kind"] in ("ReplicaSet", "StatefulSet", "Pod", "Job")

    @property
    def guards(self) -> bool:
        """Whether this is a policy that has to be there before the pods."""
        return bool(self.object["kind"] == "NetworkPolicy")

    @property
    def narrows(self) -> bool:
        """Whether this is a Service that gives requests to ready pods alone: there may soon be another that is not."""
        return self.object["kind"] == "Service" and self.object["spec"].get("publishNotReadyAddresses") is False


@dataclass(frozen=True)
class Scale:
    """Sets the replicas of a ReplicaSet or a StatefulSet, or a ReplicaSet's note of how many groups it should have, and
    nothing else of it."""

    name: str
    replicas: int
    why: str = ""
    kind: str = "ReplicaSet"


@dataclass(frozen=True)
class MarkFailed:
    """Writes (or with None removes) the FAILED annotation of a ReplicaSet."""

    name: str
    failure: Failure | None


@dataclass(frozen=True)
class MarkProven:
    """Writes the PROVEN annotation of a ReplicaSet."""

    name: str


@dataclass(frozen=True)
class Renumber:
    """Writes the NUMBER annotation of a ReplicaSet: one gone back to becomes the newest."""

    name: str
    number: int


@dataclass(frozen=True)
class MakeKey:
    """Creates this Secret with a key in it, unless it is there: it is never read."""

    object: Mapping[str, Any]


@dataclass(frozen=True)
class Label:
    """Puts labels on a pod that was made without them."""

    pod: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Delete:
    """kind is one of ReplicaSet, Pod, ConfigMap, ServiceMonitor …; a missing object is no error."""

    kind: str
    name: str
    why: str = ""


@dataclass(frozen=True)
class Record:
    """Stores what an inspect pod reported under its source's key, and removes the pod."""

    key: str


Action = Apply | Scale | MarkFailed | MarkProven | Renumber | MakeKey | Label | Delete | Record


def can_wait(action: Action) -> bool:
    """Whether no pod depends on the action: it applies neither what makes pods, nor their policy, nor what narrows
    where requests go."""
    return isinstance(action, Apply) and not action.makes_pods and not action.guards and not action.narrows


def ordered(actions: Iterable[Action]) -> tuple[Action, ...]:
    """Pods take longest to start, so the actions that can wait come last. Otherwise the order stays."""
    return tuple(sorted(actions, key=can_wait))


@dataclass(frozen=True)
class Event:
    """One transition, for `kubectl describe`."""

    type: str
    """Normal or Warning."""
    reason: str
    message: str


@dataclass(frozen=True)
class Plan:
    """What one look at the cluster leads to."""

    actions: tuple[Action, ...] = ()
    status: Mapping[str, Any] = field(default_factory=dict)
    """The whole status as it should read; written only where it differs. Empty: it is left as it is."""
    events: tuple[Event, ...] = ()
    needs_usage: bool = False
    """Read what the pods on all nodes request and plan again: a rollout's step or the memory of a device depends on
    it."""
    needs_claims: tuple[str, ...] = ()
    """Read the size of these claims and plan again."""
    needs_events: bool = False
    """Read the events of pods that wait and plan again: only events name what these pods wait for."""
    again_in: float | None = None
    """Seconds after which time itself may change the plan; None: only the cluster can."""

    @property
    def incomplete(self) -> bool:
        """Whether the plan depends on something that is not in the watch cache and has to be read first."""
        return self.needs_usage or bool(self.needs_claims) or self.needs_events
