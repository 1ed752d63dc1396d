"""Objects that the watches have shown, as packed JSON or parsed values, and snapshots of one deployment's part."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import structlog

from plimsoll.api.job_progress import JobProgress
from plimsoll.operator import kinds, names, parse, parse_groups, parse_jobs
from plimsoll.operator.build.source import output_key
from plimsoll.operator.entries import (
    Entry,
    Id,
    Inspected,
    Key,
    Ref,
    Target,
    came,
    inspecting_of,
    job_key,
    may_answer,
    object_of,
    older,
    packed,
    unpacked,
    unreadable_of,
)
from plimsoll.operator.kinds import Kind
from plimsoll.operator.outputs import output_of
from plimsoll.operator.pages import Pages
from plimsoll.operator.relations import PARSED, relations
from plimsoll.operator.shape import text
from plimsoll.operator.snapshot import Inspecting, Page, Pod, Snapshot
from plimsoll.operator.unreadable import unreadable

log = structlog.get_logger("plimsoll.operator.watch_cache")

#: Who names a source; the rest of what belongs to one was made by looking at it.
_NAMES_IT = (kinds.DEPLOYMENT.name, kinds.QUANTIZATION.name, kinds.REPLICA_SET.name)
#: How long a deletion is remembered, so that an older listing cannot bring the object back.
_REMEMBER_SECONDS = 600.0


class Cache:
    """Objects by kind and name, found by the deployment or source they belong to. Safe from any thread.

    Args:
        changed: called with each deployment that an event concerns, without the lock.
        source_key: the key of the source that a spec names; None for a spec that names none.
    """

    def __init__(
        self,
        changed: Callable[[Key], None],
        source_key: Callable[[str, Mapping[str, Any]], str | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.apis: frozenset[str] = frozenset()
        self.image_volumes = False
        self.sees_nodes = False
        self.lost: frozenset[str] = frozenset()  # namespaces that may not be read: nothing is done there
        self.relisted: dict[str, float] = {}
        """Monotonic time at which a kind was last listed instead of watched: deletions in between were not reported."""
        self._changed, self._source_key, self._clock = changed, source_key, clock
        self._lock = threading.RLock()
        self._entries: dict[Id, Entry] = {}
        self._by_kind: dict[str, dict[Id, Entry]] = {}
        self._by_ref: dict[Ref, set[Id]] = {}
        self._gone: dict[str, tuple[float, str]] = {}
        """When an object was seen to be deleted, and the version that it had then, by uid."""
        self._pages = Pages()
        self._errors: dict[Key, str] = {}

    def seen(self, kind: Kind, event: str | None, raw: Mapping[str, Any], *, quiet: bool = False) -> bool:
        """Takes in one event of a watch, one object of a listing (`event` None) or the answer to a write of ours.

        Older than what is known, it changes nothing. Returns whether it brought something new. What is "LOST" may come
        back. With `quiet` the change starts no reconcile."""
        about = parse.meta(raw)
        identity = (kind.name, text(about.get("namespace")), text(about.get("name")))
        uid, version = text(about.get("uid")), text(about.get("resourceVersion"))
        now = self._clock()
        away = event in ("DELETED", "LOST")
        if not away and self._no_news(identity, uid, version, now):
            return False  # Most of what a watch tells is the echo of our own writes: not worth taking apart.
        try:
            entry = None if away else self._entry(kind, uid, version, now, raw)
            last = parse.pod(raw) if away and kind is kinds.POD and "status" in raw else None
        except Exception:
            # One object must harm no other: what is known of it stays as it is.
            log.exception("this is a bug: an object cannot be read", kind=kind.name, namespace=identity[1],
                          name=identity[2])  # fmt: skip
            return False
        with self._lock:
            if entry is None:
                self._gone |= {uid: (now, version)} if event == "DELETED" else {}
                if (known := self._entries.get(identity)) is None or known.uid != uid:
                    return False
                affected = self._remove(identity, last)
            elif self._no_news(identity, uid, version, now):
                return False
            else:
                affected = self._put(identity, entry)
        for key in affected if not quiet else ():
            self._changed(key)
        return True

    def _no_news(self, identity: Id, uid: str, version: str, now: float) -> bool:
        with self._lock:
            known = self._entries.get(identity)
            if uid in self._gone and not older(self._gone[uid][1], version):
                return True
            if known is not None and older(version, known.version):
                return True
            if known is None or known.uid != uid or known.version != version:
                return False
            known.seen_at = now
            return True

    def _entry(self, kind: Kind, uid: str, version: str, now: float, raw: Mapping[str, Any]) -> Entry:
        value, refs = relations(kind, raw, self._source_key)
        slim = packed(kind, raw) if kind not in PARSED else None
        return Entry(uid, version, now, tuple(refs), value, slim, unreadable(kind, raw, value))

    def _put(self, identity: Id, entry: Entry) -> set[Key]:
        before = self._entries.get(identity)
        affected: set[Key] = set()
        if before is not None and before.uid != entry.uid:
            affected |= self._remove(identity)
            before = None
        self._entries[identity] = self._by_kind.setdefault(identity[0], {})[identity] = entry
        for ref in entry.refs:
            self._by_ref.setdefault(ref, set()).add(identity)
        if before is not None:
            self._unlink(identity, [ref for ref in before.refs if ref not in entry.refs])
        # A new slice without an address says what no slice says.
        if before.told != entry.told if before is not None else entry.value != frozenset():
            affected |= self._concerned(identity, entry.refs) | self._concerned(identity, before.refs if before else ())
        if identity[0] == kinds.POD.name:
            self._pages.came(entry.uid)
            self._note_last_words(entry)
        return affected

    def _remove(self, identity: Id, last: Pod | None = None) -> set[Key]:
        """`last`: a pod as its deletion showed it."""
        entry = self._entries.pop(identity)
        del self._by_kind[identity[0]][identity]
        affected = self._concerned(identity, entry.refs)
        self._unlink(identity, entry.refs)
        if identity[0] == kinds.POD.name:
            self._pages.went(entry.uid)
            if any(ref[0] == "job" for ref in entry.refs):
                for pod in (entry.value, last):
                    self._pages.part(pod, self._clock())
        return affected

    def _concerned(self, identity: Id, refs: Iterable[Ref]) -> set[Key]:
        """Whom a change of this object concerns. A deployment is no other's business, though it shares its source."""
        if identity[0] == kinds.DEPLOYMENT.name:
            return {identity[1:]}
        if identity[0] == kinds.REPLICA_SET.name:
            return self._keys_of(ref for ref in refs if ref[0] == "deployment")
        if identity[0] == kinds.QUANTIZATION.name:
            return self._keys_of(ref for ref in refs if ref[0] != "source")
        return self._near(identity[2]) if identity[0] == kinds.NODE.name else self._keys_of(refs)

    def _unlink(self, identity: Id, refs: Iterable[Ref]) -> None:
        for ref in refs:
            (members := self._by_ref[ref]).discard(identity)
            if not members:
                del self._by_ref[ref]
                if ref[0] == "source":
                    self._errors.pop(ref[1:], None)

    def _keys_of(self, refs: Iterable[Ref]) -> set[Key]:
        found: set[Key] = set()
        for what, namespace, name in refs:
            if what == "deployment":
                found.add((namespace, name))
            elif what == "job":
                found.add(job_key(namespace, name))
            elif what == "shared":
                every = self._of(kinds.DEPLOYMENT).items()
                found |= {i[1:] for i, e in every if i[1] == namespace and e.value.phase == "Inspecting"}
            elif what in ("source", "waits", "output"):
                for member in self._by_ref.get((what, namespace, name), ()):
                    found |= self._asking(member, what == "source")
        return found

    def _asking(self, member: Id, deeper: bool) -> set[Key]:
        """Whom an object stands for that names a source, a job or a place; `deeper`, who waits for it too."""
        if member[0] == kinds.DEPLOYMENT.name:
            return {member[1:]}
        if member[0] == kinds.QUANTIZATION.name:
            waiting = self._keys_of([("waits", *member[1:])]) if deeper else set()
            return {job_key(*member[1:]), *waiting}
        entry = self._entries[member] if member[0] == kinds.REPLICA_SET.name else None
        return self._keys_of(ref for ref in entry.refs if ref[0] == "deployment") if entry else set()

    def _near(self, node: str) -> set[Key]:
        """Deployments that a change of this node concerns: its pods' own, and those that wait for any node."""
        every = self._of(kinds.DEPLOYMENT).items()
        found = {identity[1:] for identity, entry in every if entry.value.phase not in ("Ready", "Stopped")}
        jobs = self._of(kinds.QUANTIZATION).items()
        found |= {job_key(*identity[1:]) for identity, entry in jobs if entry.value.phase in ("Refused", "Pending")}
        for entry in self._of(kinds.POD).values():
            if entry.value.node == node:
                found |= self._keys_of(entry.refs)
        return found

    def _of(self, kind: Kind) -> dict[Id, Entry]:
        return self._by_kind.get(kind.name, {})

    def _note_last_words(self, entry: Entry) -> None:
        pod: Pod = entry.value
        for what, namespace, key in entry.refs:
            if what == "source" and pod.phase == "Failed":
                words = parse.last_words(pod) or pod.message or "the inspect pod failed"
                self._errors[namespace, key] = words

    def snapshot(self, key: Key, now: float) -> Snapshot | None:
        """The corner of a deployment or a quantization job at this moment; None when there is none."""
        kind, namespace, name = object_of(key)
        with self._lock:
            top = self._entries.get((kind.name, namespace, name))
            if top is None or top.packed is None or namespace in self.lost:
                return None
            what = "job" if kind is kinds.QUANTIZATION else "deployment"
            members = [(i, self._entries[i]) for i in self._by_ref.get((what, namespace, name), ())]
            members += [(i, self._entries[i]) for i in self._by_ref.get(("shared", namespace, ""), ())]
            waited = self._entries.get((kinds.QUANTIZATION.name, namespace, top.value.job or ""))
            quantizing = parse_jobs.quantizing(unpacked(waited)) if waited else None
            named = [e for i, e in members if i[0] == kinds.REPLICA_SET.name] if top.value.job else []
            sets = parse.replica_sets((unpacked(e) for e in named), top.uid)
            output = output_of(top.value.job, quantizing, sets) if top.value.job else None
            source = output_key(namespace, output) if output else top.value.source
            looking, about_source = self._looking(namespace, source)
            looking_at_draft, _ = self._looking(namespace, top.value.draft)
            nodes = tuple(e.value for e in self._of(kinds.NODE).values()) if self.sees_nodes else None
            seen = [self._pages.shown(e.uid, e.value) for i, e in members if i[0] == kinds.POD.name]
            jobs = [e.uid for i, e in members if i[0] == kinds.JOB.name]
            parted = tuple(pod for uid in jobs if (pod := self._pages.parted(uid)))
            rivals = self._rivals(top, (kind.name, namespace, name)) if kind is kinds.QUANTIZATION else ()
        routable: set[str] = set().union(*(e.value for i, e in members if i[0] == kinds.ENDPOINT_SLICE.name))
        both = (*members, *about_source)
        ours = (kinds.DEPLOYMENT.name, kinds.QUANTIZATION.name)
        children = {(i[0], i[2]): unpacked(e) for i, e in both if e.packed and i[0] not in ours}
        pods = [replace(pod, routable=pod.uid in routable) for pod in seen]
        return Snapshot(
            deployment=parse.deployment({"kind": kind.name, **unpacked(top)}),
            now=now,
            inspecting=looking,
            inspecting_draft=looking_at_draft,
            replica_sets=parse.replica_sets((raw for i, raw in children.items() if i[0] == "ReplicaSet"), top.uid),
            stateful_sets=parse_groups.stateful_sets(children, top.uid),
            pods=tuple(sorted(pods, key=lambda one: (one.created, one.name))),
            children=children,
            nodes=nodes,
            apis=self.apis,
            image_volumes=self.image_volumes,
            quantizing=quantizing,
            batch_jobs=tuple(parse_jobs.batch_job(raw) for (child, _), raw in children.items() if child == "Job"),
            rivals=rivals,
            parted=parted,
            unreadable=unreadable_of(both),
        )

    def _looking(self, namespace: str, source: str | None) -> tuple[Inspecting | None, Sequence[tuple[Id, Entry]]]:
        # A thousand deployments may name the same source; only what was found there matters.
        same = self._by_ref.get(("source", namespace, source or ""), ())
        about = [(i, self._entries[i]) for i in same if i[0] not in _NAMES_IT]
        return inspecting_of(source, about, self._errors.get((namespace, source))) if source else None, about

    def _rivals(self, top: Entry, identity: Id) -> tuple[str, ...]:
        """Other quantization jobs of the same output that were there first."""
        place = next((ref for ref in top.refs if ref[0] == "output"), None)
        others = [i for i in self._by_ref.get(place, ()) if i != identity] if place else []
        mine = came(top)
        return tuple(sorted(i[2] for i in others if came(self._entries[i]) < mine))

    def uid(self, kind: Kind, namespace: str, name: str) -> str | None:
        """uid of an object; None where it is not in the cache."""
        with self._lock:
            entry = self._entries.get((kind.name, namespace, name))
        return entry.uid if entry else None

    def version(self, kind: Kind, namespace: str, name: str) -> str:
        """The resourceVersion that is known; empty for what is not there."""
        with self._lock:
            entry = self._entries.get((kind.name, namespace, name))
        return entry.version if entry else ""

    def listed(self, kind: Kind) -> dict[tuple[str, str], tuple[str, str, float]]:
        """(namespace, name) to (uid, resourceVersion, when it was last seen) of everything of a kind."""
        with self._lock:
            return {i[1:]: (e.uid, e.version, e.seen_at) for i, e in self._of(kind).items()}

    def every(self) -> list[Key]:
        """All deployments and quantization jobs."""
        with self._lock:
            jobs = [job_key(*identity[1:]) for identity in self._of(kinds.QUANTIZATION)]
            return [*(identity[1:] for identity in self._of(kinds.DEPLOYMENT)), *jobs]

    def phases(self, kind: Kind = kinds.DEPLOYMENT) -> Counter[str]:
        """Number of objects by phase."""
        with self._lock:
            return Counter(entry.value.phase for entry in self._of(kind).values())

    def targets(self) -> list[Target]:
        """Server pods, and pods that quantize, that may answer on their status port."""
        found = []
        with self._lock:
            for entry in self._of(kinds.POD).values():
                if not entry.refs or entry.refs[0][0] not in ("deployment", "job"):
                    continue
                pod: Pod = entry.value
                if pod.ip and may_answer(pod):
                    quantizes = entry.refs[0][0] == "job"
                    key = job_key(*entry.refs[0][1:]) if quantizes else entry.refs[0][1:]
                    found.append(Target(key, entry.uid, pod.ip, pod.ready, quantizes))
        return found

    def page(self, uid: str) -> Page | JobProgress | None:
        """The latest status page of a pod, if it has answered."""
        with self._lock:
            return self._pages.of(uid)

    def set_page(self, uid: str, page: Page | JobProgress | None) -> None:
        """Keep a pod's latest status page; None forgets it."""
        with self._lock:
            self._pages.keep(uid, page)

    def began_to_lead(self, now: float) -> None:
        """Note when this operator became the leader."""
        with self._lock:
            self._pages.began_to_lead(now)

    def asked(self, uid: str, *, known: bool = True) -> bool:
        """Note that a pod was polled; see `Pages.asked`."""
        with self._lock:
            return self._pages.asked(uid, known=known)

    def unasked(self, key: Key) -> bool:
        """Whether a page that may be there was never asked for."""
        kind, namespace, name = object_of(key)
        ref = "job" if kind is kinds.QUANTIZATION else "deployment", namespace, name
        with self._lock:
            members = [self._entries[i] for i in self._by_ref.get(ref, ()) if i[0] == kinds.POD.name]
            return any(self._pages.unasked(e.uid) and may_answer(e.value) for e in members)

    def inspected(self) -> list[Inspected]:
        """Every source that is or was looked at."""
        found: dict[Key, Inspected] = {}
        with self._lock:
            for (what, namespace, key), members in self._by_ref.items():
                if what != "source":
                    continue
                parts = [(i[0], i[2], self._entries[i]) for i in members if i[0] not in _NAMES_IT]
                wanted = len(parts) < len(members)
                if parts:
                    found[namespace, key] = Inspected(namespace, key, wanted, parts)
        return list(found.values())

    def inspection(self, namespace: str, key: str) -> tuple[Pod | None, bool]:
        """The pod that looks at a source, and whether its findings are recorded."""
        with self._lock:
            members = [(i, self._entries[i]) for i in self._by_ref.get(("source", namespace, key), ())]
        pods = [e.value for i, e in members if i[0] == kinds.POD.name]
        recorded = any(i[0] == kinds.CONFIG_MAP.name and e.value is not None for i, e in members)
        return max(pods, key=lambda one: one.created, default=None), recorded

    def unused_policies(self) -> list[tuple[str, str]]:
        """Namespace and uid of inspect pods' policies where there is neither a deployment, a job nor an inspect pod."""
        with self._lock:
            used = {identity[1] for kind in (kinds.DEPLOYMENT, kinds.QUANTIZATION) for identity in self._of(kind)}
            used |= {i[1] for i, e in self._of(kinds.POD).items() if any(ref[0] == "source" for ref in e.refs)}
            policies = ((i, e) for i, e in self._of(kinds.POLICY).items() if i[2] == names.INSPECT_POLICY)
            return [(i[1], e.uid) for i, e in policies if i[1] not in used]

    def forget_error(self, namespace: str, key: str) -> None:
        """Forget why the source of this key could not be inspected."""
        with self._lock:
            self._errors.pop((namespace, key), None)

    def tidy(self) -> None:
        """Forgets deletions that no listing can be older than."""
        with self._lock:
            oldest = self._clock() - _REMEMBER_SECONDS
            self._gone = {uid: kept for uid, kept in self._gone.items() if kept[0] > oldest}
            self._pages.tidy(oldest)
