"""What the planner wants done. Values only: `apply` carries them out, in order."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plimsoll.operator.snapshot import Failure


@dataclass(frozen=True)
class Apply:
    """Server-side apply of a whole object; its owner reference is in it."""

    object: Mapping[str, Any]
    why: str = ""


@dataclass(frozen=True)
class Scale:
    """Sets a ReplicaSet's replicas and nothing else of it."""

    name: str
    replicas: int
    why: str = ""


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
class Delete:
    """kind is one of ReplicaSet, Pod, ConfigMap, ServiceMonitor …; a missing object is no error."""

    kind: str
    name: str
    why: str = ""


@dataclass(frozen=True)
class Record:
    """Stores what an inspect pod reported under its source's key, and removes the pod."""

    key: str


Action = Apply | Scale | MarkFailed | MarkProven | Renumber | Delete | Record


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
    look_for_room: bool = False
    """Look for free devices and plan again: this decision depends on them."""
    look_for_taken: bool = False
    """Look for what stays on the nodes and plan again: the line of memory depends on it."""
    look_for_claims: tuple[str, ...] = ()
    """Look for the size of these claims and plan again."""
    ask_why: bool = False
    """Some pod waits for something that only its events name: read them and plan again."""
    again_in: float | None = None
    """Seconds after which time itself may change the plan; None: only the cluster can."""
