"""What the cache keeps of an object, and how objects are named and found."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from plimsoll.api.job_progress import JobProgress
from plimsoll.operator import kinds, parse
from plimsoll.operator.kinds import Kind
from plimsoll.operator.shape import text, whole
from plimsoll.operator.snapshot import Inspecting, Page, Pod, Unreadable

Key = tuple[str, str]
"""Namespace and name of a deployment; of a quantization job, `QuantizationJob/` before its name."""
Id = tuple[str, str, str]
"""Kind, namespace, name."""
Ref = tuple[str, str, str]
"""What an object belongs to: (`deployment` | `job` | `waits` | `output` | `source` | `shared`, namespace, name or key).

`waits` holds a quantization job and the deployments that name it, `output` the jobs that write to one place.
"""


#: What is read of the status of what we make; of other kinds all of it is kept.
_STATUS: Mapping[Kind, tuple[str, ...]] = {
    kinds.REPLICA_SET: ("conditions",), kinds.STATEFUL_SET: (), kinds.SERVICE: (), kinds.BUDGET: (), kinds.POLICY: (),
}  # fmt: skip


@dataclass(slots=True, frozen=True)
class Brief:
    """Of a deployment, the facts that questions about all deployments need."""

    phase: str
    source: str | None
    generation: int
    job: str | None = None
    """The quantization job that it waits for."""
    draft: str | None = None
    """The source of its draft."""


@dataclass(slots=True)
class Entry:
    """One object in the watch cache."""

    uid: str
    version: str
    seen_at: float
    refs: tuple[Ref, ...]
    value: Any
    """Pod, Node, frozenset of ready pods, Inspection, Brief; None for objects that are only compared."""
    packed: bytes | None
    unreadable: tuple[str, ...] = ()
    """What `unreadable` says of it."""

    @property
    def told(self) -> tuple[Any, ...]:
        """What a look may depend on."""
        return self.value, self.packed, self.refs


@dataclass(frozen=True)
class Inspected:
    """A source of a namespace, with the pod, the policy and the record that looking at it has made."""

    namespace: str
    key: str
    wanted: bool
    """A deployment names it."""
    parts: list[tuple[str, str, Entry]]
    """Kind, name and what is known of each."""


@dataclass(frozen=True)
class Target:
    """A pod whose status page can be read."""

    key: Key
    uid: str
    ip: str
    ready: bool
    quantizes: bool = False
    """Its page is a job's."""


def job_key(namespace: str, name: str) -> Key:
    """Key of a QuantizationJob in the work queue."""
    return namespace, f"{kinds.QUANTIZATION.name}/{name}"


def object_of(key: Key) -> tuple[Kind, str, str]:
    """Kind, namespace and name of what a key stands for."""
    kind, slash, name = key[1].partition("/")
    return (kinds.QUANTIZATION, key[0], name) if slash else (kinds.DEPLOYMENT, key[0], kind)


def said_by(pod: Pod, page: Page | JobProgress | None) -> dict[str, Any]:
    """As fields of `pod`; nothing of one that has ended, whose page says what was."""
    if pod.ended:
        return {}
    return {"progress": page} if isinstance(page, JobProgress) else {"page": page}


def may_answer(pod: Pod) -> bool:
    """Whether a pod may answer on its status port."""
    return bool(pod.ip) and not pod.deleting and pod.phase in ("Pending", "Running")


def unreadable_of(members: Sequence[tuple[Id, Entry]]) -> tuple[Unreadable, ...]:
    """The notes of all these objects that cannot be read."""
    return tuple(Unreadable(i[0], i[2], e.uid, words) for i, e in members for words in e.unreadable)


def unpacked(entry: Entry) -> dict[str, Any]:
    """The object that was packed, with the version of its entry."""
    raw: dict[str, Any] = msgspec.json.decode(zlib.decompress(entry.packed or b""))
    raw["metadata"] = {**parse.meta(raw), "resourceVersion": entry.version}
    return raw


def older(version: str, known: str) -> bool:
    """Resource versions grow, guaranteed by Kubernetes since 1.35 and true before. Other versions have no order."""
    return whole(version, -1) < whole(known, -1) if ordered(version, known) else False


def ordered(version: str, known: str) -> bool:
    """Whether both resource versions are numbers."""
    return whole(version, -1) >= 0 and whole(known, -1) >= 0


def packed(kind: Kind, raw: Mapping[str, Any]) -> bytes:
    """A tenth of what the object takes as dictionaries; unpacked again for each look. The same as long as nothing
    changes that is read of this kind, its version apart: the operator ignores what controllers count in a status."""
    return zlib.compress(msgspec.json.encode(parse.trimmed(raw, _STATUS.get(kind))), 1)


def came(entry: Entry) -> tuple[str, str]:
    """What orders objects by when they were made."""
    return text(parse.meta(unpacked(entry)).get("creationTimestamp")), entry.uid


def inspecting_of(source: str, members: Sequence[tuple[Id, Entry]], error: str | None) -> Inspecting:
    """What is known of a source from its pod and its record, of which one may be missing."""
    found = next((e.value for i, e in members if i[0] == kinds.CONFIG_MAP.name and e.value is not None), None)
    pods = [e.value for i, e in members if i[0] == kinds.POD.name and not e.value.deleting]
    pod = max(pods, key=lambda one: one.created, default=None)
    if found is None and pod is not None and pod.phase in ("Succeeded", "Failed"):
        found = parse.inspection([parse.last_words(pod)])
    return Inspecting(source, found, error if found is None else None, pod)
