"""Observe, plan, apply, report: one look at one deployment or job, and the threads that keep looking."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

import structlog

from plimsoll import __version__
from plimsoll.operator import unreadable
from plimsoll.operator.actions import Apply, Event, Plan, can_wait
from plimsoll.operator.apply import Applier
from plimsoll.operator.cluster import (
    Cluster,
    ClusterError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NameTakenError,
    NotFoundError,
    NotLeaderError,
    UnavailableError,
)
from plimsoll.operator.entries import Key, object_of
from plimsoll.operator.metrics import Metrics
from plimsoll.operator.plan.refusal import refused as with_refusal
from plimsoll.operator.pulse import Pulse
from plimsoll.operator.report import Reporter
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import Deployment, Snapshot
from plimsoll.operator.usage import Usage
from plimsoll.operator.waiting import Waiting
from plimsoll.operator.watch_cache import Cache
from plimsoll.operator.workqueue import WorkQueue

log = structlog.get_logger("plimsoll.operator.reconcile")

Planner = Callable[[Snapshot, Settings, str], Plan]
#: So many looks in a row that each changed something, and the key waits: two writers may be undoing each other.
_RESTLESS = 30
_RESTLESS_SECONDS = 10.0
#: Notes that were pointed out already.
_REMEMBERED = 1024


class Reconciler:
    """What a worker does with a key."""

    def __init__(
        self, cluster: Cluster, cache: Cache, queue: WorkQueue, settings: Settings, metrics: Metrics,
        plan: Planner, usage: Usage, emit: Callable[[Deployment, Event], None], version: str = __version__,
    ) -> None:  # fmt: skip
        self._cluster, self._cache, self._queue = cluster, cache, queue
        self._settings, self._metrics, self._version = settings, metrics, version
        self._plan, self._usage, self._waiting = plan, usage, Waiting(cluster)
        self._applier, self._reporter = Applier(cluster, cache, metrics), Reporter(cluster, cache, metrics)
        self._tell = emit
        self._busy: dict[Key, tuple[int, float]] = {}
        self._pointed_out: OrderedDict[tuple[str, str], None] = OrderedDict()
        self.patient_until = 0.0
        """Monotonic time until which a deployment waits for its pods' status pages to be read once."""

    def work(self, key: Key) -> None:
        """One key, from the queue and back. Raises nothing."""
        began = time.monotonic()
        try:
            again = self.reconcile(key)
            self._queue.done(key, again)
        except NotLeaderError:
            # The next leader looks at everything; but a lease that was late for a moment has no next leader.
            self._queue.failed(key)
        except ConflictError as error:
            self._metrics.errors.labels("Conflict").inc()
            self._refresh(key)
            log.debug("somebody was faster", namespace=key[0], deployment=key[1], error=str(error))
            self._queue.failed(key)
        except ClusterError as error:
            self._metrics.errors.labels(type(error).__name__.removesuffix("Error")).inc()
            wait = self._queue.failed(key, error.after or 0.0)
            log.warning("will try again", namespace=key[0], deployment=key[1], error=str(error), seconds=round(wait, 1))
        except Exception as error:
            self._metrics.errors.labels("Bug").inc()
            wait = self._queue.failed(key)
            log.exception("this is a bug", namespace=key[0], deployment=key[1], seconds=round(wait, 1))
            self._confess(key, error)
        finally:
            self._metrics.reconcile_seconds.observe(time.monotonic() - began)

    def reconcile(self, key: Key) -> float | None:
        """Plans and acts once. Returns the seconds after which time itself may change the plan.

        Raises:
            ClusterError: something could not be done; what comes before it in the plan is done.
            NotLeaderError: the lease is gone.
        """
        snapshot = self._cache.snapshot(key, time.time())
        if snapshot is None:
            self._queue.forget(key)
            self._busy.pop(key, None)
            self._reporter.forget(key)
            return None
        if time.monotonic() < self.patient_until and self._cache.unasked(key):
            # A new leader has read no pages yet; a status without them would be wrong in a moment.
            return 0.5
        self._point_out(snapshot)
        plan = self._plan(snapshot, self._settings, self._version)
        if plan.incomplete:
            snapshot = self._completed(snapshot, plan)
            plan = self._plan(snapshot, self._settings, self._version)
        refused: ClusterError | None = None
        away: UnavailableError | None = None
        changed = asked_for_pods = unguarded = False
        for action in plan.actions:
            if asked_for_pods and refused is None and can_wait(action) and self._queue.rush():
                # Others have not even come so far. The rest is planned again once it is its turn.
                return 0.0
            if unguarded and isinstance(action, Apply) and action.makes_pods:
                continue
            try:
                changed |= self._applier.carry_out(action, snapshot)
                asked_for_pods |= changed and not can_wait(action)
            except (ForbiddenError, InvalidError, NameTakenError) as error:
                # A quota or a policy of the cluster: others of these actions may still pass, and the user must hear.
                # But no pod is made that another's policy would have to guard.
                log.warning("refused", namespace=key[0], deployment=key[1], action=repr(action)[:200], error=str(error))
                refused = refused or error
                unguarded |= isinstance(error, NameTakenError) and isinstance(action, Apply) and action.guards
                if "being terminated" in str(error):
                    return None
            except UnavailableError as error:
                if not error.status:
                    raise
                # The API server is there and a webhook of it is not, perhaps for hours: what was seen is said first.
                away = error
                break
        if refused is not None and plan.status:
            taken = isinstance(refused, NameTakenError)
            plan = with_refusal(plan, str(refused), snapshot.deployment, snapshot.now, taken=taken)
        try:
            later = self._report(snapshot, plan)
        except NotFoundError:
            return None
        if away is not None:
            raise away
        if refused is not None:
            raise refused
        return self._pace(key, changed, min((one for one in (plan.again_in, later) if one is not None), default=None))

    def _report(self, snapshot: Snapshot, plan: Plan) -> float | None:
        """Writes the status, then tells the events. Returns the seconds that the status has to wait, if it has to.

        Raises:
            NotFoundError: the object is gone.
            ClusterError: the status cannot be written.
        """
        try:
            later = self._reporter.report(snapshot.deployment, plan.status) if plan.status else None
        except InvalidError:
            # The object was stored while nothing checked it, and no status of it can be: events still can.
            self._emit(snapshot, plan)
            raise
        if later is None:
            # Only once the status is written, so that each is written once.
            self._emit(snapshot, plan)
        return later

    def _completed(self, snapshot: Snapshot, plan: Plan) -> Snapshot:
        """`snapshot` with all that `plan` depends on and that no watch shows, so that the next plan is the last.

        Raises:
            ClusterError: the API server did not answer.
        """
        if plan.needs_usage:
            taken, room = self._usage.read(snapshot)
            snapshot = replace(snapshot, taken=taken, room=room)
        if plan.needs_claims:
            claims = self._usage.claims(snapshot.deployment.namespace, plan.needs_claims)
            snapshot = replace(snapshot, claims=claims)
        return self._waiting.explained(snapshot) if plan.needs_events else snapshot

    def _pace(self, key: Key, changed: bool, again_in: float | None) -> float | None:
        """Keeps a deployment that never settles from taking all the time there is."""
        if not changed:
            self._busy.pop(key, None)
            return again_in
        count, since = self._busy.get(key, (0, time.monotonic()))
        if time.monotonic() - since > _RESTLESS_SECONDS:
            count, since = 0, time.monotonic()
        self._busy[key] = (count + 1, since)
        if count + 1 >= _RESTLESS:
            del self._busy[key]
            log.warning(
                "does not settle: does something else write the same fields?", namespace=key[0], deployment=key[1]
            )
            raise UnavailableError("does not settle", after=_RESTLESS_SECONDS)
        return again_in

    def _confess(self, key: Key, error: Exception) -> None:
        """Says on the object itself that nothing is done about it, and why."""
        kind, namespace, name = object_of(key)
        text = f"The operator cannot work on this object, and goes on with others. Please report it: {error!r}"
        uid = self._cache.uid(kind, namespace, name)
        try:
            if uid is not None:
                about = Deployment(namespace, name, uid, 0, {}, kind=kind.name)
                self._tell(about, Event("Warning", "InternalError", text[:900]))
        except (ClusterError, NotLeaderError):
            pass  # The log has it.

    def _point_out(self, snapshot: Snapshot) -> None:
        """Says on each object whose notes cannot be read which they are, once in the life of this process."""
        for one in snapshot.unreadable:
            if (one.uid, one.words) in self._pointed_out:
                continue
            self._pointed_out[one.uid, one.words] = None
            while len(self._pointed_out) > _REMEMBERED:
                self._pointed_out.popitem(last=False)
            about = Deployment(snapshot.deployment.namespace, one.name, one.uid, 0, {}, kind=one.kind)
            log.warning("a note cannot be read", kind=one.kind, namespace=about.namespace, name=one.name, why=one.words)
            self._say(about, Event("Warning", unreadable.REASON, one.words))

    def _emit(self, snapshot: Snapshot, plan: Plan) -> None:
        key = snapshot.deployment.key
        for event in dict.fromkeys(plan.events):
            log.info(event.message or event.reason, namespace=key[0], deployment=key[1], reason=event.reason)
            self._say(snapshot.deployment, event)

    def _say(self, about: Deployment, event: Event) -> None:
        try:
            self._tell(about, event)
        except ClusterError as error:
            log.warning("an event was lost", namespace=about.namespace, name=about.name, error=str(error))

    def _refresh(self, key: Key) -> None:
        """What was in the way may be a watch that lags: read the deployment itself."""
        try:
            kind, namespace, name = object_of(key)
            fresh = self._cluster.get(kind, namespace, name)
            self._cache.seen(kind, None, fresh, quiet=True)
        except ClusterError:
            pass  # The next look finds out.


class Workers:
    """Threads that take keys from the queue until it is closed."""

    def __init__(self, queue: WorkQueue, work: Callable[[Key], None], count: int) -> None:
        self._queue, self._work = queue, work
        self.pulses = [Pulse(f"worker-{index}", self._run) for index in range(count)]

    def _run(self) -> None:
        while True:
            key = self._queue.get(timeout=60.0)
            if key is not None:
                self._work(key)
            elif self._queue.closed:
                return

    def join(self, seconds: float) -> None:
        """Wait at most `seconds` for all workers to end."""
        until = time.monotonic() + seconds
        for pulse in self.pulses:
            pulse.join(max(0.0, until - time.monotonic()))
