"""What the pods on all nodes request, and how large claims are: read from the API server only when a plan needs it."""

import threading
import time
from collections.abc import Iterable, Mapping
from functools import partial

from plimsoll.operator import kinds, parse
from plimsoll.operator.cluster import Cluster, ForbiddenError, NotFoundError, read_again
from plimsoll.operator.plan.capacity import need_of, room_for
from plimsoll.operator.shape import mapping, text
from plimsoll.operator.snapshot import Room, Snapshot

Used = Mapping[str, Mapping[str, int]]
#: Namespace and deployment that a pod belongs to; no name where it is none of ours.
Owner = tuple[str, str]
Stays = Mapping[str, Mapping[Owner, int]]
#: One listing serves all deployments that ask within this time.
_FRESH_SECONDS = 1.0
_RUNNING = "status.phase!=Succeeded,status.phase!=Failed,spec.nodeName!="


class Usage:
    """Requests of all pods by node, listed page by page and added up on the way."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._lock = threading.Lock()
        self._used: Used = {}
        self._stays: Stays = {}
        self._read_at = -1e9

    def read(self, snapshot: Snapshot) -> tuple[dict[str, int] | None, Room | None]:
        """`Snapshot.taken` and `Snapshot.room`, from one listing; both None where nodes cannot be seen.

        Raises:
            ClusterError: the pods cannot be listed.
        """
        if snapshot.nodes is None:
            return None, None
        used, stays = self._fresh()
        own = snapshot.deployment.namespace, snapshot.deployment.name
        taken = {node: sum(size for owner, size in by.items() if owner != own) for node, by in stays.items()}
        return taken, partial(room_for, snapshot.nodes, used)

    def claims(self, namespace: str, names: Iterable[str]) -> dict[str, int]:
        """Bytes of these claims, of those that are there and bound.

        Raises:
            ClusterError: they cannot be read; a right that is missing is no error, their size is then unknown.
        """
        found = {}
        for name in names:
            try:
                raw = self._cluster.get(kinds.CLAIM, namespace, name)
                found[name] = parse.amount("storage", mapping(raw.get("status"))["capacity"]["storage"])
            except (NotFoundError, ForbiddenError, KeyError, TypeError, ValueError):
                continue
        return found

    def _fresh(self) -> tuple[Used, Stays]:
        with self._lock:
            if time.monotonic() - self._read_at > _FRESH_SECONDS:
                self._used, self._stays = read_again(self._once)
                self._read_at = time.monotonic()
            return self._used, self._stays

    def _once(self) -> tuple[Used, Stays]:
        used: dict[str, dict[str, int]] = {}
        stays: dict[str, dict[Owner, int]] = {}
        for page in self._cluster.pages(kinds.POD, fields=_RUNNING, limit=500):
            for raw in page:
                name = text(mapping(raw.get("spec")).get("nodeName"))
                node = used.setdefault(name, {})
                try:
                    wanted = need_of(raw)
                except ValueError:
                    continue
                for resource, amount in wanted.items():
                    node[resource] = node.get(resource, 0) + amount
                if (owner := parse.stays_for(raw)) is not None:
                    there = stays.setdefault(name, {})
                    there[owner] = there.get(owner, 0) + wanted.get("memory", 0)
        used.pop("", None)
        return used, stays
