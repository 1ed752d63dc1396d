"""What the watches have shown, kept small, and one deployment's corner of it as a snapshot.

Objects that are compared field by field are kept as packed JSON; of the others only the parsed values stay.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import structlog

from plimsoll.operator import kinds, names, parse
from plimsoll.operator.entries import (
    Brief,
    Entry,
    Id,
    Inspected,
    Key,
    Ref,
    Target,
    may_answer,
    older,
    packed,
    unpacked,
)
from plimsoll.operator.kinds import Kind
from plimsoll.operator.snapshot import Inspecting, Page, Pod, Snapshot

log = structlog.get_logger("plimsoll.operator.observe")

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
        self.relisted: dict[str, float] = {}
        """Monotonic time at which a kind was last listed instead of watched: what went meanwhile was not told."""
        self._changed, self._source_key, self._clock = changed, source_key, clock
        self._lock = threading.RLock()
        self._entries: dict[Id, Entry] = {}
        self._by_kind: dict[str, dict[Id, Entry]] = {}
        self._by_ref: dict[Ref, set[Id]] = {}
        self._gone: dict[str, float] = {}
        self._pages: dict[str, Page] = {}
        self._first_seen: dict[str, float] = {}
        self._asked: set[str] = set()
        self._leading_since = 0.0
        self._errors: dict[Key, str] = {}

    def seen(
        self, kind: Kind, event: str | None, raw: Mapping[str, Any], *, ours: bool = False, quiet: bool = False
    ) -> bool:
        """Takes in one event of a watch, one object of a listing (`event` None) or the answer to a write of `ours`.

        Older than what is known, it changes nothing. Returns whether it brought something new.

        Args:
            quiet: nobody needs to look because of it.
        """
        about = parse.meta(raw)
        identity = (kind.name, about.get("namespace") or "", about.get("name") or "")
        uid, version = about.get("uid") or "", about.get("resourceVersion") or ""
        now = self._clock()
        entry = None if event == "DELETED" else self._entry(kind, uid, version, now, raw)
        with self._lock:
            known = self._entries.get(identity)
            if event == "DELETED":
                self._gone[uid] = now
                if known is None or known.uid != uid:
                    return False
                affected = self._remove(identity)
            else:
                assert entry is not None
                if uid in self._gone or (known is not None and older(version, known.version)):
                    return False
                if known is not None and known.uid == uid and known.version == version:
                    known.seen_at = now
                    return False
                affected = self._put(identity, entry)
        for key in affected if not quiet else ():
            self._changed(key)
        return True

    def _entry(self, kind: Kind, uid: str, version: str, now: float, raw: Mapping[str, Any]) -> Entry:
        namespace, tags = parse.meta(raw).get("namespace") or "", parse.labels(raw)
        refs: list[Ref] = []
        value: Any = None
        slim: bytes | None = None
        if kind is kinds.DEPLOYMENT:
            source = self._source_key(namespace, raw.get("spec") or {})
            phase = str((raw.get("status") or {}).get("phase") or "Pending")
            value = Brief(phase, source, int(parse.meta(raw).get("generation") or 0))
            refs.append(("deployment", namespace, parse.meta(raw).get("name") or ""))
            if source:
                refs.append(("source", namespace, source))
        elif names.DEPLOYMENT in tags:
            refs.append(("deployment", namespace, tags[names.DEPLOYMENT]))
        elif names.SOURCE in tags:
            refs.append(("source", namespace, tags[names.SOURCE]))
        elif kind in kinds.CHILDREN:
            refs.append(("shared", namespace, ""))
        if kind is kinds.POD:
            value = parse.pod(raw)
        elif kind is kinds.NODE:
            value = parse.node(raw)
        elif kind is kinds.ENDPOINT_SLICE:
            value = parse.ready_endpoints(raw)
        elif kind is kinds.CONFIG_MAP:
            value = parse.inspection((raw.get("data") or {}).values())
        else:
            slim = packed(raw)
        return Entry(uid, version, now, tuple(refs), value, slim)

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
        if before is None or entry.packed is not None or before.value != entry.value or before.refs != entry.refs:
            affected |= self._concerned(identity, entry.refs) | self._concerned(identity, before.refs if before else ())
        if identity[0] == kinds.POD.name:
            self._first_seen.setdefault(entry.uid, time.time())
            self._note_last_words(entry)
        return affected

    def _remove(self, identity: Id) -> set[Key]:
        entry = self._entries.pop(identity)
        del self._by_kind[identity[0]][identity]
        affected = self._concerned(identity, entry.refs)
        self._unlink(identity, entry.refs)
        if identity[0] == kinds.POD.name:
            self._pages.pop(entry.uid, None)
            self._first_seen.pop(entry.uid, None)
            self._asked.discard(entry.uid)
        return affected

    def _concerned(self, identity: Id, refs: Iterable[Ref]) -> set[Key]:
        """Whom a change of this object concerns. A deployment is no other's business, though it shares its source."""
        if identity[0] == kinds.DEPLOYMENT.name:
            return {identity[1:]}
        return self._near(identity[2]) if identity[0] == kinds.NODE.name else self._keys_of(refs)

    def _unlink(self, identity: Id, refs: Iterable[Ref]) -> None:
        for ref in refs:
            members = self._by_ref[ref]
            members.discard(identity)
            if not members:
                del self._by_ref[ref]
                if ref[0] == "source":
                    self._errors.pop(ref[1:], None)

    def _keys_of(self, refs: Iterable[Ref]) -> set[Key]:
        found: set[Key] = set()
        for what, namespace, name in refs:
            if what == "deployment":
                found.add((namespace, name))
            elif what == "source":
                for member in self._by_ref.get((what, namespace, name), ()):
                    if member[0] == kinds.DEPLOYMENT.name:
                        found.add(member[1:])
        return found

    def _near(self, node: str) -> set[Key]:
        """Deployments that a change of this node concerns: its pods' own, and those that wait for any node."""
        every = self._of(kinds.DEPLOYMENT).items()
        found = {identity[1:] for identity, entry in every if entry.value.phase not in ("Ready", "Stopped")}
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
        """The deployment's corner at this moment; None when there is no such deployment."""
        with self._lock:
            top = self._entries.get((kinds.DEPLOYMENT.name, *key))
            if top is None or top.packed is None:
                return None
            members = [(i, self._entries[i]) for i in self._by_ref.get(("deployment", *key), ())]
            members += [(i, self._entries[i]) for i in self._by_ref.get(("shared", key[0], ""), ())]
            source = top.value.source
            # A thousand deployments may name the same source; only what was found there matters.
            same = self._by_ref.get(("source", key[0], source or ""), ())
            about_source = [(i, self._entries[i]) for i in same if i[0] != kinds.DEPLOYMENT.name]
            nodes = tuple(e.value for e in self._of(kinds.NODE).values()) if self.sees_nodes else None
            pages = {e.uid: self._pages.get(e.uid) for i, e in members if i[0] == kinds.POD.name}
            error = self._errors.get((key[0], source or ""))
            since = {uid: max(self._first_seen.get(uid, 0.0), self._leading_since) for uid in pages}
        routable: set[str] = set()
        for identity, entry in members:
            if identity[0] == kinds.ENDPOINT_SLICE.name:
                routable |= entry.value
        both = (*members, *about_source)
        children = {(i[0], i[2]): unpacked(e) for i, e in both if e.packed and i[0] != kinds.DEPLOYMENT.name}
        pods = [
            replace(e.value, routable=e.uid in routable, page=pages.get(e.uid), seen_since=since[e.uid])
            for i, e in members
            if i[0] == kinds.POD.name
        ]
        return Snapshot(
            deployment=parse.deployment(unpacked(top)),
            now=now,
            inspecting=_inspecting(source, about_source, error) if source else None,
            replica_sets=tuple(parse.replica_set(raw) for (kind, _), raw in children.items() if kind == "ReplicaSet"),
            pods=tuple(sorted(pods, key=lambda one: (one.created, one.name))),
            children=children,
            nodes=nodes,
            apis=self.apis,
            image_volumes=self.image_volumes,
        )

    def raw(self, kind: Kind, namespace: str, name: str) -> dict[str, Any] | None:
        with self._lock:
            entry = self._entries.get((kind.name, namespace, name))
        return unpacked(entry) if entry is not None and entry.packed else None

    def uid(self, kind: Kind, namespace: str, name: str) -> str | None:
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

    def deployments(self) -> list[Key]:
        """All deployments."""
        with self._lock:
            return [identity[1:] for identity in self._of(kinds.DEPLOYMENT)]

    def phases(self) -> Counter[str]:
        with self._lock:
            return Counter(entry.value.phase for entry in self._of(kinds.DEPLOYMENT).values())

    def targets(self) -> list[Target]:
        """Server pods that may answer on their status port."""
        found = []
        with self._lock:
            for entry in self._of(kinds.POD).values():
                if not entry.refs or entry.refs[0][0] != "deployment":
                    continue
                pod: Pod = entry.value
                if pod.ip and may_answer(pod):
                    found.append(Target(entry.refs[0][1:], entry.uid, pod.ip, pod.ready))
        return found

    def page(self, uid: str) -> Page | None:
        with self._lock:
            return self._pages.get(uid)

    def set_page(self, uid: str, page: Page | None) -> None:
        with self._lock:
            if page is None:
                self._pages.pop(uid, None)
            else:
                self._pages[uid] = page

    def began_to_lead(self, now: float) -> None:
        """From here on pages are read, and nobody has read them before."""
        with self._lock:
            self._leading_since = now
            self._asked.clear()

    def asked(self, uid: str) -> None:
        """The pod's page was asked for, with or without success."""
        with self._lock:
            self._asked.add(uid)

    def unasked(self, key: Key) -> bool:
        """Whether a page that may be there was never asked for."""
        with self._lock:
            members = [self._entries[i] for i in self._by_ref.get(("deployment", *key), ()) if i[0] == kinds.POD.name]
            return any(e.uid not in self._asked and may_answer(e.value) for e in members)

    def inspected(self) -> list[Inspected]:
        """Every source that is or was looked at."""
        found: dict[Key, Inspected] = {}
        with self._lock:
            for (what, namespace, key), members in self._by_ref.items():
                if what != "source":
                    continue
                wanted = any(member[0] == kinds.DEPLOYMENT.name for member in members)
                parts = [(i[0], i[2], self._entries[i]) for i in members if i[0] != kinds.DEPLOYMENT.name]
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

    def forget_error(self, namespace: str, key: str) -> None:
        with self._lock:
            self._errors.pop((namespace, key), None)

    def tidy(self) -> None:
        """Forgets deletions that no listing can be older than."""
        with self._lock:
            oldest = self._clock() - _REMEMBER_SECONDS
            self._gone = {uid: at for uid, at in self._gone.items() if at > oldest}


def _inspecting(source: str, members: list[tuple[Id, Entry]], error: str | None) -> Inspecting:
    found = next((e.value for i, e in members if i[0] == kinds.CONFIG_MAP.name and e.value is not None), None)
    pods = [e.value for i, e in members if i[0] == kinds.POD.name and not e.value.deleting]
    pod = max(pods, key=lambda one: one.created, default=None)
    if found is None and pod is not None and pod.phase in ("Succeeded", "Failed"):
        found = parse.inspection([parse.last_words(pod)])
    return Inspecting(source, found, error if found is None else None, pod)
