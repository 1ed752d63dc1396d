"""Kubernetes events about deployments and jobs: one object per message, counted when it comes again."""

import contextlib
import hashlib
import os
import queue
import socket
import threading
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Any

import structlog

from plimsoll.operator import kinds
from plimsoll.operator.actions import Event
from plimsoll.operator.cluster import Cluster, ClusterError, ConflictError, NotFoundError, NotLeaderError
from plimsoll.operator.names import API_VERSION
from plimsoll.operator.snapshot import Deployment

log = structlog.get_logger("plimsoll.operator.events")

COMPONENT = "plimsoll-operator"
_REMEMBERED = 2048
#: As the API server caps it.
_LONGEST = 1024


class Poster:
    """Writes events from a thread of its own, in order: nobody's work waits for them, and a full queue drops them."""

    def __init__(self, events: "Events") -> None:
        self._events = events
        self._waiting: queue.Queue[tuple[Deployment, Event]] = queue.Queue(maxsize=2048)
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def emit(self, deployment: Deployment, event: Event) -> None:
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait((deployment, event))

    def _run(self) -> None:
        while True:
            deployment, event = self._waiting.get()
            try:
                self._events.emit(deployment, event)
            except NotLeaderError:
                continue
            except ClusterError as error:
                log.warning("an event was lost", deployment=deployment.name, error=str(error))
            except Exception:
                log.exception("this is a bug")


class Events:
    """Writes events. What was written lately is remembered, so that a repetition becomes a count and not an object."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._instance = os.environ.get("POD_NAME") or socket.gethostname()
        self._counts: OrderedDict[str, int] = OrderedDict()

    def emit(self, deployment: Deployment, event: Event) -> None:
        """Raises ClusterError; an event that is lost does no harm."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        message = event.message if len(event.message) <= _LONGEST else event.message[: _LONGEST - 1] + "…"
        about = f"{deployment.uid}\0{event.type}\0{event.reason}\0{message}"
        name = f"{deployment.name}.{hashlib.sha256(about.encode()).hexdigest()[:16]}"
        count = self._counts.get(name, 0) + 1
        if count > 1 and self._repeated(deployment.namespace, name, count, now):
            return
        body: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": deployment.namespace},
            "involvedObject": {
                "apiVersion": API_VERSION, "kind": deployment.kind, "namespace": deployment.namespace,
                "name": deployment.name, "uid": deployment.uid,
            },
            "type": event.type,
            "reason": event.reason,
            "message": message,
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._instance,
        }  # fmt: skip
        try:
            self._cluster.create(kinds.EVENT, body)
            count = 1
        except ConflictError:
            # An earlier process wrote it; how often is not ours to read, so it counts from two.
            count = max(count, 2)
            self._repeated(deployment.namespace, name, count, now)
        self._remember(name, count)

    def _repeated(self, namespace: str, name: str, count: int, now: str) -> bool:
        try:
            self._cluster.merge(kinds.EVENT, namespace, name, {"count": count, "lastTimestamp": now})
        except NotFoundError:
            return False  # The API server forgets events after an hour.
        self._remember(name, count)
        return True

    def _remember(self, name: str, count: int) -> None:
        self._counts[name] = count
        self._counts.move_to_end(name)
        while len(self._counts) > _REMEMBERED:
            self._counts.popitem(last=False)
