"""Kubernetes events about deployments and jobs: one object per message, counted when it comes again."""

import hashlib
import os
import queue
import socket
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog

from plimsoll.operator import kinds
from plimsoll.operator.actions import Event
from plimsoll.operator.cluster import Cluster, ClusterError, ConflictError, NotFoundError, NotLeaderError
from plimsoll.operator.plan.conditions import timestamp
from plimsoll.operator.pulse import Pulse
from plimsoll.operator.snapshot import Deployment

log = structlog.get_logger("plimsoll.operator.events")

COMPONENT = "plimsoll-operator"
_REMEMBERED = 2048
#: An event that has waited so long is dropped.
LATEST_SECONDS = 10.0
#: As the API server caps it.
_LONGEST = 1024


class Poster:
    """Writes events from threads of its own, those of one deployment in order: no other work waits for them.

    After a burst old events are dropped, so that no event is older than `LATEST_SECONDS`: a condition says
    what is, and an event that comes late only delays those that are news.
    """

    def __init__(self, events: "Events", threads: int = 4, clock: Callable[[], float] = time.monotonic) -> None:
        self._events, self._clock = events, clock
        self._waiting: list[queue.Queue[tuple[float, Deployment, Event]]] = [
            queue.Queue(maxsize=1024) for _ in range(threads)
        ]
        self.dropped = 0
        self._told = 0
        self.pulses = [Pulse(f"events-{index}", partial(self._run, one)) for index, one in enumerate(self._waiting)]

    def emit(self, deployment: Deployment, event: Event) -> None:
        """Queue an event; count it as dropped when the queue is full."""
        try:
            # By uid, so that one deployment's events stay in order.
            which = zlib.crc32(deployment.uid.encode()) % len(self._waiting)
            self._waiting[which].put_nowait((self._clock(), deployment, event))
        except queue.Full:
            self.dropped += 1

    def _run(self, waiting: "queue.Queue[tuple[float, Deployment, Event]]") -> None:
        while True:
            at, deployment, event = waiting.get()
            if self._clock() - at > LATEST_SECONDS:
                self.dropped += 1
                continue
            if self.dropped > self._told:
                log.warning("events came too fast to write all of them", dropped=self.dropped - self._told)
                self._told = self.dropped
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
        self._lock = threading.Lock()
        self._counts: OrderedDict[str, int] = OrderedDict()

    def emit(self, deployment: Deployment, event: Event) -> None:
        """Raises ClusterError; an event that is lost does no harm.

        Args:
            deployment: names the object that the event is about, of any kind.
        """
        now = timestamp(time.time())
        message = event.message if len(event.message) <= _LONGEST else event.message[: _LONGEST - 1] + "…"
        about = f"{deployment.uid}\0{event.type}\0{event.reason}\0{message}"
        name = f"{deployment.name}.{hashlib.sha256(about.encode()).hexdigest()[:16]}"
        with self._lock:
            count = self._counts.get(name, 0) + 1
        if count > 1 and self._repeated(deployment.namespace, name, count, now):
            return
        body: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": deployment.namespace},
            "involvedObject": {
                "apiVersion": kinds.BY_NAME[deployment.kind].api_version, "kind": deployment.kind,
                "namespace": deployment.namespace, "name": deployment.name, "uid": deployment.uid,
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
        with self._lock:
            self._counts[name] = count
            self._counts.move_to_end(name)
            while len(self._counts) > _REMEMBERED:
                self._counts.popitem(last=False)
