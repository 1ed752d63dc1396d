"""A pod that follows: it holds ranks for the leader of its group, and says so on its status port."""

import asyncio
import json
import signal
import time
from typing import TYPE_CHECKING, Any

import structlog

import plimsoll
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.group.agent import Agent
from plimsoll.runtime.engine.group.membership import Membership
from plimsoll.runtime.machine.peak import peak_bytes

if TYPE_CHECKING:
    from plimsoll.runtime.messages import LoadProgress, RankReady


class Following:
    """The agent of this machine as probes, the operator and signals see it.

    Args:
        config: this machine's own paths and threads.
        drain_timeout: seconds in which the leader lets this machine go.
    """

    def __init__(
        self, config: EngineConfig, membership: Membership, secret: bytes, digest: str, drain_timeout: float
    ) -> None:
        self.membership = membership
        self.draining = False
        self._drain_timeout = drain_timeout
        self._log = structlog.get_logger("plimsoll.following")
        self.agent = Agent(config, membership, secret, digest)

    @property
    def alive(self) -> bool:
        """Whether the agent works. One that waits for its leader does."""
        return self.agent.alive or self.draining

    @property
    def unready(self) -> str:
        """Why this pod does not count as part of a group that serves, empty where it does."""
        if self.draining:
            return "draining"
        return "" if self.agent.serving else self.agent.failure or "loading"

    @property
    def phase(self) -> str:
        """`loading`, `ready` or `draining`."""
        return "draining" if self.draining else "ready" if self.agent.serving else "loading"

    def status(self, started: float) -> dict[str, Any]:
        """What this pod knows of itself. Bytes and seconds; what is not known yet is left out."""
        crew = self.agent.crew
        processes = [] if crew is None else list(crew.processes)
        ranks = [_rank(one.ready, peak_bytes(one.process.pid)) for one in processes if one.ready is not None]
        found: dict[str, Any] = {
            "phase": self.phase,
            "version": plimsoll.__version__,
            "ordinal": self.membership.ordinal,
            "startup": _startup([one.weights for one in processes], [one.ready for one in processes], started),
            "observed": {term: sum(rank[term] for rank in ranks) for term in ("weights", "kvCache", "peak") if ranks},
            "ranks": ranks,
            "leader": f"{self.membership.host}:{self.membership.port}",
        }
        return found if self.agent.failure is None else found | {"waitsFor": self.agent.failure}

    async def drain(self) -> bool:
        """Has the leader finish what runs and end the group. Returns whether it has let this pod go in time."""
        if not self.draining:
            self._log.info("draining", seconds=self._drain_timeout)
        self.draining = True
        self.agent.leave()
        deadline = time.monotonic() + self._drain_timeout
        while not self.agent.released.is_set() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return self.agent.released.is_set()

    async def serve(self, stopped: asyncio.Event) -> None:
        """Follows until `stopped`, and drains."""
        await stopped.wait()
        await self.drain()
        await asyncio.to_thread(self.agent.close)

    async def follow(self) -> None:
        """`serve` until SIGTERM or Ctrl-C; a second signal does not wait for the leader."""
        stopped = asyncio.Event()

        def stop() -> None:
            if stopped.is_set():
                self.agent.released.set()
            stopped.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        await self.serve(stopped)

    async def answer_drain(self) -> bytes:
        """JSON for a preStop hook."""
        began = time.monotonic()
        done = await self.drain()
        return json.dumps({"drained": done, "inFlight": 0, "seconds": round(time.monotonic() - began, 3)}).encode()


def _rank(ready: "RankReady", peak: int | None) -> dict[str, int]:
    return {"rank": ready.rank, "weights": ready.weights, "kvCache": ready.kv_cache, "peak": peak or ready.resident}


def _startup(progress: "list[LoadProgress | None]", ready: "list[RankReady | None]", started: float) -> dict[str, Any]:
    """As a leader's page has it: seconds before its ranks load, then bytes and seconds of the slowest."""
    loading = [one for one in progress if one is not None]
    took = max((one.load for one in ready if one is not None), default=max((one.seconds for one in loading), default=0))
    elapsed = time.monotonic() - started
    found: dict[str, Any] = {"start": {"seconds": round(max(0.0, elapsed - took), 3)}}
    if loading:
        found["load"] = {
            "bytes": sum(one.done_bytes for one in loading), "total": sum(one.total_bytes for one in loading),
            "seconds": round(took, 3),
        }  # fmt: skip
    return found
