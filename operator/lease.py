"""Who may write: one operator at a time holds a Lease, as client-go's leader election does it.

A holder stops by its own clock five seconds before another may begin, even while the network fails.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import structlog

from plimsoll.operator import kinds
from plimsoll.operator.cluster import Cluster, ClusterError, ConflictError, NotFoundError, UnavailableError
from plimsoll.operator.metrics import Metrics
from plimsoll.operator.pulse import Pulse
from plimsoll.operator.shape import whole

log = structlog.get_logger("plimsoll.operator.lease")

#: Others wait so long after the last renewal that they saw.
LEASE_SECONDS = 15
#: A record may say anything: no holder that renews nothing is waited for longer.
MOST_LEASE_SECONDS = 300
#: The field has 32 bits; one more would be refused, and no operator would lead.
_MOST_TRANSITIONS = (1 << 31) - 1
#: The holder believes in its own renewal for so long. The rest is what a write under way may take.
BELIEVE_SECONDS = 10.0
RENEW_SECONDS = 5.0
RETRY_SECONDS = 2.0
#: One attempt takes two requests of four seconds; without a round for so long the thread is stuck.
STUCK_SECONDS = 60.0
#: An API server that answers all else and not this for so long: a connection that is broken for good.
UNANSWERED_SECONDS = 120.0


class Lease:
    """Tries for the lease from a thread of its own.

    Args:
        gained: called when writing may begin.
        lost: called when it must have stopped; `held` said no before that.
    """

    def __init__(
        self, cluster: Cluster, namespace: str, name: str, metrics: Metrics,
        gained: Callable[[], None], lost: Callable[[], None], clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.identity = f"{os.environ.get('POD_NAME') or socket.gethostname()}_{uuid.uuid4().hex[:8]}"
        self.holder = ""
        self._cluster, self._namespace, self._name, self._metrics = cluster, namespace, name, metrics
        self._gained, self._lost, self._clock = gained, lost, clock
        self._held_until = float("-inf")
        self._leading = False
        self._followed = ""
        """The holder that was last logged."""
        self._renewed = False
        """Whether the last attempt took or kept it."""
        self._stop = threading.Event()
        self._seen: tuple[str, float] = ("", float("-inf"))
        """The record's last version and when it was first seen: remote clocks are not trusted."""
        self._unanswered_since: float | None = None
        """Since when no attempt was answered at all."""
        self.pulse = Pulse("lease", self._run, STUCK_SECONDS)

    def held(self) -> bool:
        """Whether this process holds the lease, by its own clock."""
        return self._clock() < self._held_until

    def stop(self) -> None:
        """Stops trying and gives the lease back, so that the next operator need not wait for it to run out."""
        self._stop.set()
        self.pulse.join(3.0)

    def unanswered(self) -> float:
        """Seconds for which no attempt was answered; a refusal is an answer, which a restart would get too."""
        since = self._unanswered_since
        return 0.0 if since is None else self._clock() - since

    def _run(self) -> None:
        complained = ""
        while not self._stop.is_set():
            self.pulse.beat()
            problem = self.step()
            if problem and problem != complained:
                log.warning("no lease", problem=problem, lease=self._name, namespace=self._namespace)
            complained = problem
            self._stop.wait(self.pause(problem))
        self._release()

    def pause(self, problem: str) -> float:
        """Seconds until the next attempt. A renewal that did not happen is tried again well before time runs out."""
        wait = RENEW_SECONDS if self._renewed and not problem else RETRY_SECONDS
        return min(wait, max(0.05, self._held_until - self._clock())) if self.held() else wait

    def step(self) -> str:
        """One attempt to take or keep the lease. Returns what went wrong, or nothing."""
        problem, self._renewed, began = "", False, self._clock()
        unanswered = False
        try:
            self._attempt()
        except NotFoundError:
            problem = f"namespace {self._namespace} does not exist"
        except ConflictError:
            pass  # Somebody else was faster; the next look shows who.
        except ClusterError as error:
            problem, unanswered = str(error), isinstance(error, UnavailableError)
        except Exception as error:  # Any error: this thread must live.
            log.exception("this is a bug")
            problem, unanswered = repr(error), True
        self._unanswered_since = (self._unanswered_since or began) if unanswered else None
        try:
            self._tell()
        except Exception as error:
            log.exception("this is a bug")
            self._leading = False  # The next attempt begins to lead again.
            problem = repr(error)
        return problem

    def _attempt(self) -> None:
        asked = self._clock()
        try:
            record = self._call("GET", self._name)
        except NotFoundError:
            self._call("POST", None, self._record(None))
            self._believe(asked)
            return
        spec = record.get("spec") or {}
        holder, version = spec.get("holderIdentity") or "", record["metadata"].get("resourceVersion", "")
        if version != self._seen[0]:
            self._seen = (version, asked)
        lasts = min(whole(spec.get("leaseDurationSeconds")) or LEASE_SECONDS, MOST_LEASE_SECONDS)
        expired = asked - self._seen[1] >= lasts
        self.holder = holder
        if holder and holder != self.identity and not expired:
            self._held_until = float("-inf")
            if holder != self._followed:
                # `kubectl logs deployment/…` may have picked this pod: its reader has to know where to look.
                pod = holder.rpartition("_")[0] or holder
                log.info(f"this pod waits and does nothing: {pod} leads, read its log", leader=pod, lease=self._name)
            self._followed = holder
            return
        asked = self._clock()
        self._call("PUT", self._name, self._record(record))
        self.holder = self.identity
        self._believe(asked)

    def _believe(self, since: float) -> None:
        # From before the request: the renewal took effect at the earliest when it was sent.
        self._held_until = since + BELIEVE_SECONDS
        self._renewed = True

    def _tell(self) -> None:
        held = self.held()
        if held == self._leading:
            return
        self._leading = held
        self._metrics.leader.set(held)
        if held:
            log.info("leading", lease=self._name, identity=self.identity)
            self._gained()
        else:
            log.warning("no longer leading; nothing is written", lease=self._name, holder=self.holder or "unknown")
            self._lost()

    def _record(self, before: dict[str, Any] | None) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = dict((before or {}).get("spec") or {})
        if spec.get("holderIdentity") != self.identity:
            spec["leaseTransitions"] = min(
                whole(spec.get("leaseTransitions")) + (1 if before else 0), _MOST_TRANSITIONS
            )
            spec["acquireTime"] = now
        spec |= {"holderIdentity": self.identity, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now}
        meta: dict[str, Any] = {"name": self._name, "namespace": self._namespace}
        if before:
            meta = {**before["metadata"]}
            meta.pop("managedFields", None)
        return {"apiVersion": kinds.LEASE.api_version, "kind": "Lease", "metadata": meta, "spec": spec}

    def _release(self) -> None:
        held, self._held_until = self.held(), float("-inf")
        if not held:
            return
        try:
            record = self._call("GET", self._name)
            if (record.get("spec") or {}).get("holderIdentity") == self.identity:
                given = self._record(record)
                given["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                self._call("PUT", self._name, given)
                log.info("gave the lease back", lease=self._name)
        except ClusterError as error:
            log.warning("the lease was not given back and runs out by itself", error=str(error))

    def _call(self, verb: str, name: str | None, body: dict[str, Any] | None = None) -> dict[str, Any]:
        path = kinds.LEASE.path(self._namespace, name)
        return self._cluster.request(verb, path, body=body, gated=False, retry=False, seconds=4.0)
