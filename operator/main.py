"""The operator process: `plimsoll-operator [--config FILE]`, or `python -m plimsoll.operator.main`.

Threads: one for the watches, some that reconcile, one each for the lease, for checking the watches, for sweeping and
for health; the main one reads status pages and waits for the signal to end.
"""

import argparse
import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from plimsoll import __version__
from plimsoll.api.deployment import Model
from plimsoll.api.errors import PlimsollError
from plimsoll.api.printable import printable
from plimsoll.operator import build, discover, kinds, log
from plimsoll.operator.cluster import Cluster, ClusterError, connection
from plimsoll.operator.departures import Departures
from plimsoll.operator.events import Events, Poster
from plimsoll.operator.health import Health
from plimsoll.operator.kinds import Kind
from plimsoll.operator.lease import UNANSWERED_SECONDS, Lease
from plimsoll.operator.metrics import Metrics
from plimsoll.operator.plan import next_plan
from plimsoll.operator.poll import Poller
from plimsoll.operator.pulse import Pulse
from plimsoll.operator.reconcile import Reconciler, Workers
from plimsoll.operator.reflector import WATCH_SECONDS
from plimsoll.operator.settings import Settings, load_settings
from plimsoll.operator.sweep import Sweeper
from plimsoll.operator.usage import Usage
from plimsoll.operator.verify import Rounds, Verifier
from plimsoll.operator.watch_cache import Cache
from plimsoll.operator.watches import Watches
from plimsoll.operator.workqueue import SETTLE_SECONDS, WorkQueue

logger = structlog.get_logger("plimsoll.operator")

#: A worker, or the loop that reads status pages, that took so long hangs.
HUNG_SECONDS = 300.0
STUCK_SECONDS = 60.0
#: A watch that was not renewed for so long is dead, if the API server answers otherwise.
DEAD_SECONDS = 3.0 * WATCH_SECONDS
#: A watch that has not begun for so long, though the API server answers and allows it, begins in no attempt.
MISSING_SECONDS = 180.0
DISCOVER_SECONDS = 10.0
NO_KIND = "the cluster has no ModelDeployment: apply crds/, this goes on by itself then"
#: A new leader waits so long for pods' status pages before it says what it does not see.
PATIENCE_SECONDS = 10.0


class Operator:
    """All parts of the process, wired together."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.queue = WorkQueue(self.metrics, settle=SETTLE_SECONDS)
        self.cache = Cache(self.queue.add, source_key)
        configuration = connection()
        self.cluster = Cluster(
            configuration, self.metrics, may_write=lambda: self.lease.held(), connections=settings.workers + 8
        )
        self.lease = Lease(
            self.cluster, settings.operator_namespace, settings.lease_name, self.metrics, self._gained, self.queue.pause
        )
        self.departures = Departures(self.cluster, self.cache)
        self.watches = Watches(configuration, self.cache, settings.namespaces, self.departures.heard)
        self.verifier = Verifier(
            self.cluster, self.cache, settings.namespaces, self.metrics, regained=self._wake_all,
            departures=self.departures,
        )  # fmt: skip
        self.watches.refused = self.verifier.doubt
        self.rounds = Rounds(self.verifier, lambda: self.watches.kinds, self._missed)
        self.sweeper = Sweeper(self.cluster, self.cache, self.lease.held)
        self.poller = Poller(self.cache, self.queue.add, self.lease.held, self.metrics)
        self.poster = Poster(Events(self.cluster))
        self.reconciler = Reconciler(
            self.cluster, self.cache, self.queue, settings, self.metrics, next_plan, Usage(self.cluster),
            self.poster.emit,
        )  # fmt: skip
        self.workers = Workers(self.queue, self.reconciler.work, settings.workers)
        self.health: Health | None = None
        self._filled = False
        self._beat = time.monotonic()
        self._stop = asyncio.Event()
        self._ending = threading.Event()
        self._waiting_for = "the API server"
        self._always: list[Kind] = []
        """Kinds that are watched in this cluster wherever they are there."""
        self._unseen: set[str] = set()
        """Kinds that are watched and were not there at the last look."""
        self._start = Pulse("start", self._begin)
        self._reading: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self) -> None:
        """Until SIGTERM or SIGINT."""
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop.set)
        if self.settings.health_port:
            self.health = Health(self.settings.health_port, self.metrics, self.alive, self.ready, self._refresh)
            self.health.start()
        self._start.start()
        self._reading = asyncio.ensure_future(self.poller.run())
        beat = asyncio.ensure_future(self._heart())
        await self._stop.wait()
        logger.info("ending")
        for task in (self._reading, beat):
            task.cancel()
        # Even if a thread hangs, the process ends in time; the lease then runs out by itself.
        timer = threading.Timer(4.5, os._exit, (0,))
        timer.daemon = True
        timer.start()
        await asyncio.to_thread(self._end)

    async def _heart(self) -> None:
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(1.0)

    def _begin(self) -> None:
        """Waits for what must be there, lists everything once, then lets the parts loose."""
        watched = self._await_kinds()
        if watched is None:
            return
        for kind in watched:
            while not self._ending.is_set():
                self._waiting_for = f"a list of {kind.plural}"
                try:
                    logger.info("listed", kind=kind.name, objects=self.verifier.fill(kind))
                    break
                except ClusterError as error:
                    logger.warning("cannot list", kind=kind.name, error=str(error))
                    self._ending.wait(5.0)
        self._filled = True
        self._waiting_for = "the watches"
        self.watches.start(watched)
        for pulse in self._parts():
            pulse.start()
        while not self._ending.wait(DISCOVER_SECONDS):
            try:
                self._look_again()
            except ClusterError:
                continue
            except Exception:
                logger.exception("this is a bug")

    def _await_kinds(self) -> list[Kind] | None:
        told = ""
        while not self._ending.is_set():
            problem = ""
            try:
                if self.cluster.serves(kinds.DEPLOYMENT):
                    return self._watched()
                problem = NO_KIND
            except ClusterError as error:
                problem = f"the API server cannot be asked: {error}"
            self._waiting_for = problem
            if problem != told:
                logger.warning(problem)
                told = problem
            self._ending.wait(2.0)
        return None

    def _watched(self) -> list[Kind]:
        """Raises ClusterError."""
        where = self.settings.namespaces or (self.settings.operator_namespace, "default")
        extra = discover.optional(self.cluster)
        self.cache.apis = frozenset(kind.name for kind in extra)
        self.cache.sees_nodes = not self.settings.namespaces
        self.cache.image_volumes = self.settings.image_volumes == "auto" and discover.image_volumes(self.cluster, where)
        nodes = [kinds.NODE] if self.cache.sees_nodes else []
        self._always = [*kinds.WATCHED, *nodes]
        return [*self._always, *extra]

    def _look_again(self) -> None:
        """Kinds come and go: monitoring is often installed later, and CRDs are deleted and applied again.

        Raises:
            ClusterError: the API server does not say which kinds there are.
        """
        ours = self.cluster.serves(kinds.DEPLOYMENT)
        extra = discover.optional(self.cluster)
        there = [*(kind for kind in self._always if ours or kind is not kinds.DEPLOYMENT), *extra]
        absent = {kind.name for kind in self.watches.kinds if kind not in there}
        # An API server that has just started may not know all kinds yet: one is gone at the second look.
        unsure, self._unseen = absent - self._unseen, absent
        wanted = [*(kind for kind in self.watches.kinds if kind in there or kind.name in unsure),
                  *(kind for kind in there if kind not in self.watches.kinds)]  # fmt: skip
        if wanted == list(self.watches.kinds):
            return
        logger.info("the cluster's kinds have changed", watched=[kind.name for kind in wanted])
        self.cache.apis = frozenset(kind.name for kind in wanted if kind in kinds.OPTIONAL)
        for kind in self.watches.kinds:
            if kind not in wanted:
                self.verifier.forget(kind)
        self.watches.restart(wanted)
        self._wake_all()

    def _gained(self) -> None:
        self.cache.began_to_lead(time.time())
        self.reconciler.patient_until = time.monotonic() + PATIENCE_SECONDS
        self._wake_all()
        self.queue.open()

    def _wake_all(self, namespace: str | None = None) -> None:
        for key in self.cache.every():
            if namespace in (None, key[0]):
                self.queue.add(key)

    def _missed(self, kind: Kind) -> None:
        """A watch that misses changes twice in a row is not to be trusted."""
        if self.verifier.missed.get(kind.name, 0) >= 2:
            logger.warning("a watch is not to be trusted", kind=kind.name)
            self.watches.restart()

    def _end(self) -> None:
        self._ending.set()
        self.queue.close()
        self.watches.stop()
        self.departures.stop()
        self.rounds.stop()
        self.sweeper.stop()
        self.workers.join(2.0)
        # Last, for the workers write under it.
        self.lease.stop()
        self.watches.join(1.0)
        if self.health:
            self.health.stop()
        logger.info("ended")

    def alive(self) -> list[str]:
        """What only a restart mends."""
        if self._ending.is_set():
            return []
        now, wrong = time.monotonic(), []
        if now - self._beat > STUCK_SECONDS:
            wrong.append(f"the event loop has been stuck for {now - self._beat:.0f} s")
        if self._reading is not None and self._reading.done():
            wrong.append("status pages are read no more")
        for pulse in self._pulses():
            wrong += pulse.wrong()
        if self._filled:
            hung = self.queue.longest_running()
            if hung > HUNG_SECONDS:
                wrong.append(f"a worker has been at one deployment for {hung:.0f} s")
            # While the API server is away no watch can be renewed, and a restart would mend nothing.
            if now - self.cluster.answered_at < 60.0:
                wrong += self._cut_off()
        return wrong

    def _pulses(self) -> list[Pulse]:
        return [self._start, self.watches.pulse, *self._parts()]

    def _parts(self) -> list[Pulse]:
        """Threads that begin once everything has been listed. Last the lease, which lets the others write."""
        single = (self.departures, self.rounds, self.sweeper, self.lease)
        return [*self.workers.pulses, *self.poster.pulses, *(part.pulse for part in single)]

    def _cut_off(self) -> list[str]:
        """What gets no answer, or the wrong one, from an API server that answers others."""
        wrong = [f"the watch of {k} is {age:.0f} s old" for k, age in self.watches.ages().items() if age > DEAD_SECONDS]
        # What is forbidden, or is no kind of this cluster, would be so after a restart as well.
        missing = {k: age for k, age in self.watches.missing().items() if k not in self.watches.denied}
        wrong += [f"the watch of {k} has not begun for {a:.0f} s" for k, a in missing.items() if a > MISSING_SECONDS]
        wrong += [f"the watch of {k} keeps missing changes" for k, count in self.verifier.missed.items() if count >= 3]
        unanswered = self.lease.unanswered()
        if unanswered > UNANSWERED_SECONDS:
            wrong.append(f"the lease has had no answer for {unanswered:.0f} s")
        return wrong

    def ready(self) -> list[str]:
        """Reasons why the operator is not ready; empty when it is."""
        if not self._filled:
            return [f"waiting for {self._waiting_for}"]
        watched = {kind.name for kind in self.watches.kinds}
        if kinds.DEPLOYMENT in self._always and kinds.DEPLOYMENT.name not in watched:
            return [f"waiting for {NO_KIND}"]
        if not self.watches.open():
            return ["waiting for the watches"]
        return [words for kind, words in dict(self.rounds.refused).items() if kind in watched]

    def _refresh(self) -> None:
        for gauge, phased in ((self.metrics.deployments, kinds.DEPLOYMENT), (self.metrics.jobs, kinds.QUANTIZATION)):
            gauge.clear()
            for phase, count in self.cache.phases(phased).items():
                gauge.labels(phase).set(count)
        for kind, age in self.watches.ages().items():
            self.metrics.watch_age.labels(kind).set(age)


def source_key(namespace: str, spec: Mapping[str, Any]) -> str | None:
    """The key of what a spec wants inspected; None for one that names no source, or is refused anyway."""
    try:
        found = Model.model_validate(spec.get("model") or {})
    except ValueError:
        return None
    return build.source_key(namespace, found) if found.source else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the operator. Returns the exit status: 0 ended by a signal, 2 wrong configuration."""
    parser = argparse.ArgumentParser(prog="plimsoll-operator", description="Serves ModelDeployments on a cluster.")
    parser.add_argument("--config", type=Path, help="YAML settings; default $PLIMSOLL_OPERATOR_CONFIG")
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    given = parser.parse_args(arguments)
    try:
        settings = load_settings(given.config)
    except PlimsollError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    log.configure(given.log_level)
    try:
        operator = Operator(settings)
    except ClusterError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: healthPort {settings.health_port}: {error.strerror}", file=sys.stderr)
        return 2
    logger.info("starting", version=__version__, namespaces=list(settings.namespaces) or "all")
    asyncio.run(operator.run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
