"""What is there: one deployment's corner of the cluster at one moment, immutable, as the planner reads it.

Times are seconds since the epoch, sizes bytes, processors thousandths. Raw Kubernetes objects appear only as `Mapping`s
in `children`, for comparing with what should be there.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from plimsoll.api.deployment import KIND
from plimsoll.api.inspection import Inspection
from plimsoll.api.job_progress import JobProgress


@dataclass(frozen=True)
class Deployment:
    """The ModelDeployment, or the QuantizationJob, as the API server holds it."""

    namespace: str
    name: str
    uid: str
    generation: int
    spec: Mapping[str, Any]
    status: Mapping[str, Any] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    deleting: bool = False
    kind: str = KIND

    @property
    def key(self) -> tuple[str, str]:
        """What the work queue knows it by: a job may have a deployment's name."""
        return self.namespace, self.name if self.kind == KIND else f"{self.kind}/{self.name}"


@dataclass(frozen=True)
class Container:
    """A container of a pod, now and the last time it ended."""

    name: str
    init: bool = False
    ours: bool = True
    """Written into the pod by this operator; others inject sidecars of theirs."""
    state: Literal["waiting", "running", "terminated"] = "waiting"
    reason: str = ""
    """Why it waits or ended: CrashLoopBackOff, ImagePullBackOff, OOMKilled, Completed."""
    message: str = ""
    """The kubelet's words, or the container's own last ones (its termination message)."""
    exit_code: int | None = None
    restarts: int = 0
    last_reason: str = ""
    last_message: str = ""
    last_exit_code: int | None = None
    last_ran: float = 0.0
    """Seconds that it ran before it last ended; 0 where nothing says."""
    moved_at: float = 0.0
    """When it last started or ended; 0 before either."""


@dataclass(frozen=True)
class Page:
    """A pod's status page, as last read."""

    moved_at: float
    """When its bytes or its phase last changed: what a deadline counts from."""
    phase: Literal["downloading", "loading", "warming", "ready", "draining"]
    startup: Mapping[str, Any] = field(default_factory=dict)
    """{download: {bytes, total, seconds}, load: {bytes, total, seconds}, warmup: {seconds}}; only steps that began."""
    observed: Mapping[str, int] = field(default_factory=dict)
    """{weights, kvCache, peak}, bytes as measured."""
    running: int = 0
    waiting: int = 0
    cache_usage: float = 0.0
    """Share of the cache's blocks that requests hold."""
    rank_loads: tuple[Mapping[str, float], ...] = ()
    """{rank, bytes, total, seconds} of each rank's part of `load`; empty where there is one."""
    ranks: tuple[Mapping[str, int], ...] = ()
    """{rank, weights, kvCache, peak} of each rank, bytes as measured; empty where there is one."""
    serving: Mapping[str, Any] = field(default_factory=dict)
    """{deterministic, kernels, digest, reason} as status.serving has them; empty before it serves, and of a pod that
    follows."""
    waiting_for: tuple[str, ...] = ()
    """Of a group's leader: names of the pods that have not joined it."""


@dataclass(frozen=True)
class Pod:
    """One of the deployment's server pods, or an inspect pod."""

    name: str
    uid: str = ""
    revision: str = ""
    owner: str = ""
    """uid of its ReplicaSet or StatefulSet."""
    group: str = ""
    """Name of its StatefulSet, of a pod that serves a replica together with others."""
    index: str = ""
    """Its number in its group, 0 of a pod that serves alone; empty of one that an earlier version made."""
    phase: str = "Pending"
    """Of a pod that runs once, as our own container ended, even if injected sidecars still run."""
    ready: bool = False
    routable: bool = False
    """An endpoint slice of the Service lists it as ready."""
    deleting: bool = False
    ends_by: float = 0.0
    """When it is deleting: the end of its grace period, by which its kubelet has ended it; 0 where nothing says."""
    unready_at: float = 0.0
    """When it had been ready and is not: since when; 0 before it was ever ready."""
    unready: str = ""
    """What the cluster says of why."""
    ended_at: float = 0.0
    """When it is Failed or Succeeded: about when it came to that, never later; 0 where nothing says."""
    lingers: bool = False
    """Our container has ended, and a container that somebody injected runs on or failed."""
    created: float = 0.0
    seen_since: float = 0.0
    """When this operator began to look at it: deadlines start here, since earlier progress was not seen."""
    node: str | None = None
    ip: str | None = None
    unschedulable: str | None = None
    """The scheduler's words, while it finds no place."""
    message: str = ""
    """Why the pod as a whole failed: evicted, node lost."""
    last_event: str = ""
    """Message of its last event, while its containers are being created; empty where events were not read."""
    stuck: bool = False
    """`last_event` is of something that failed: a volume, a Secret, a sandbox."""
    containers: tuple[Container, ...] = ()
    page: Page | None = None
    unread: bool = False
    """Its status page may answer, and this operator does not know yet whether it does."""
    progress: JobProgress | None = None
    """Of a quantization job's pod, as its status page last said."""
    looks_as: str = ""
    """Of an inspect pod: its spec as it was made, hashed."""
    patience: float = 0.0
    """Of an inspect pod: seconds in which it must start to work. Then the operator tries another way."""

    @property
    def ended(self) -> bool:
        """Whether it runs no more, though it is there to be looked at."""
        return self.phase in ("Succeeded", "Failed")


@dataclass(frozen=True)
class Failure:
    """Why a revision was given up."""

    reason: str
    message: str
    at: float


@dataclass(frozen=True)
class Output:
    """A checkpoint that a quantization job wrote, and that passed its gate."""

    job: str
    uri: str
    digest: str
    """Of its manifest."""


@dataclass(frozen=True)
class Shape:
    """What a group is: the pods that serve one replica together."""

    nodes: int
    """Pods, two or more."""
    topology_key: str | None = None
    """A label of nodes that has one value on all nodes of a group."""
    apart: bool = False
    """No two groups of the deployment are on one value of it."""


@dataclass(frozen=True)
class StatefulSet:
    """One group of pods."""

    name: str
    uid: str
    revision: str
    pods: int
    """How many it keeps."""
    created: float = 0.0
    deleting: bool = False
    last_event: str = ""
    """Message of its last event where that is of a failure, while a pod of it is missing; empty where events were not
    read."""


@dataclass(frozen=True)
class ReplicaSet:
    """One revision of the pod template. Of groups of pods it is the record, and keeps no pods itself."""

    name: str
    uid: str
    revision: str
    replicas: int
    """Pods that it keeps; of groups, groups."""
    shape: Shape | None = None
    """Of groups of pods: what one is."""
    number: int = 0
    """Counts revisions up, as `kubectl rollout history` does."""
    created: float = 0.0
    built_by: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    """{uri, digest, revision, bytes} of what it serves; empty in one that an earlier version made."""
    budget: Mapping[str, Any] = field(default_factory=dict)
    """status.budget as it was when it was made; empty in one that an earlier version made."""
    output: Output | None = None
    """The quantization job's output that it serves, where it serves one."""
    failure: Failure | None = None
    proven: bool = False
    """It once served every replica that was wanted: what a failed rollout goes back to."""
    blocked: str | None = None
    """Why no pod can be created for it: a quota, a policy; the API server's words."""
    deleting: bool = False


@dataclass(frozen=True)
class Node:
    """A node, as the planner sees it."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Mapping[str, str], ...] = ()
    """{key, value, effect}."""
    usable: bool = True
    """Ready and not cordoned."""
    not_ready: str = ""
    """Why its kubelet is not ready, in the cluster's words; empty while it is."""
    not_ready_at: float = 0.0
    """Since when."""
    cordoned: bool = False
    """Somebody wants it emptied, or at least no more on it."""
    allocatable: Mapping[str, int] = field(default_factory=dict)
    """cpu in thousandths, memory in bytes, pods and devices in ones."""
    image_volumes: bool = False
    """Its container runtime mounts images as volumes."""


@dataclass(frozen=True)
class Unreadable:
    """A note on an object of ours that somebody wrote over, and that counts as absent."""

    kind: str
    name: str
    uid: str
    words: str
    """The field, what it must be, and the value found."""


@dataclass(frozen=True)
class Inspecting:
    """The source's record, and the pod that looks at it while there is none."""

    key: str
    found: Inspection | None = None
    error: str | None = None
    """The inspect pod's last words: why the source cannot be read."""
    pod: Pod | None = None


@dataclass(frozen=True)
class Quantizing:
    """The QuantizationJob that a deployment names."""

    name: str
    phase: str
    percent: int = 0
    message: str = ""
    output: Output | None = None
    """Once it is complete."""
    failed: str | None = None
    """The reason of its Failed condition, once that is true."""


@dataclass(frozen=True)
class BatchJob:
    """A batch/v1 Job of a quantization job."""

    name: str
    uid: str
    owner: str = ""
    """uid of the QuantizationJob that made it: of an earlier one of that name, perhaps."""
    ended: Literal["", "Complete", "Failed"] = ""
    reason: str = ""
    message: str = ""
    ended_at: float = 0.0
    deleting: bool = False
    suspended: bool = False
    """Somebody or a queue wants no pod of it now."""
    created: float = 0.0
    last_event: str = ""
    """Message of its last event where that is of a failure, while it has no pod; empty where events were not read."""


class Room(Protocol):
    """From a pod template to the pods of it that free devices would take now: of all nodes, or of nodes `among`."""

    def __call__(self, template: Mapping[str, Any], /, among: Collection[str] | None = None) -> int: ...


@dataclass(frozen=True)
class Snapshot:
    """All that the planner knows of one ModelDeployment at one time."""

    deployment: Deployment
    now: float
    inspecting: Inspecting | None = None
    replica_sets: tuple[ReplicaSet, ...] = ()
    pods: tuple[Pod, ...] = ()
    """The deployment's server pods of every revision, those that are ending included."""
    children: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    """(kind, name) to the raw object: what the deployment owns beside ReplicaSets and pods."""
    nodes: tuple[Node, ...] | None = None
    """None where the operator may not see nodes (one namespace only)."""
    room: Room | None = None
    """None: what other pods request has not been read."""
    taken: Mapping[str, int] | None = None
    """By node, bytes of memory that pods ask for which stay there: not this deployment's own, and none that ends by
    itself; None: not known."""
    apis: frozenset[str] = frozenset()
    """Optional kinds the cluster has: ServiceMonitor, PodMonitor."""
    image_volumes: bool = False
    """The API server keeps image volumes."""
    quantizing: Quantizing | None = None
    """Of a deployment that names a job: that job; None while there is none of that name."""
    batch_jobs: tuple[BatchJob, ...] = ()
    """Of a quantization job: the Jobs that carry its name, those of earlier ones included."""
    rivals: tuple[str, ...] = ()
    """Of a quantization job: others that write, or wrote, to the same place and were there first."""
    parted: tuple[Pod, ...] = ()
    """Of a quantization job: of each of its Jobs the last pod that ended and is gone, for its last words."""
    stateful_sets: tuple[StatefulSet, ...] = ()
    """Groups of pods, oldest first."""
    leaders: bool = False
    """The Service is to choose by `names.INDEX`: there are groups, or will be, and every single pod has that label."""
    unreadable: tuple[Unreadable, ...] = ()
    """Notes of the deployment's objects, and of its source's record, for events on these objects."""
    claims: Mapping[str, int] | None = None
    """Bytes of the claims that were asked for, as far as they are bound; None: not known."""
    inspecting_draft: Inspecting | None = None
    """As `inspecting`, of spec.serving.draft, where there is one."""
