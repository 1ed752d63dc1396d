"""The second port of a pod: what probes, the operator and preStop ask. Plain HTTP, no keys, nothing to generate.

It shares the API's event loop, so that an answer here means that the loop turns; and it is served before anything heavy
is imported, so that a pod which has only begun says so instead of refusing connections.
"""

import json
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import plimsoll
from plimsoll.runtime.machine.peak import peak_bytes
from plimsoll.runtime.server.asgi import Receive, Scope, Send
from plimsoll.runtime.server.visitors import Visitors

if TYPE_CHECKING:
    from plimsoll.runtime.messages import EngineReady, RankLoad
    from plimsoll.runtime.server.following import Following
    from plimsoll.runtime.server.service import Service

QUIET_SECONDS = 5.0
"""Without a request for so long, a pod that has left its Service counts as left alone: kube-proxy takes a second or
two to hear of it, some load balancers longer."""

STARTING_SECONDS = 600.0
"""Imports, headers and the tokenizer may take so long before the pod counts as hung."""

READ = ("GET", "HEAD")
#: kubelet's preStop hook can only GET, so reading /drain is what drains; a HEAD of it would be a trap.
PATHS = {"/live": READ, "/ready": READ, "/status": READ, "/metrics": READ, "/drain": ("GET", "POST")}
TEXT, JSON = b"text/plain; charset=utf-8", b"application/json"
EXPOSITION = b"text/plain; version=0.0.4; charset=utf-8"
Answer = tuple[int, bytes, bytes]


class StatusPort:
    """The ASGI application.

    Attributes:
        service: what is served; None until it has been made.
        following: what a pod does that follows in a group, in the place of a service.
        started: time.monotonic() of the process's beginning.
        draining: asked to drain before there was a service.
        visitors: no web page may use it, nor a link lead here, as a GET drains.
    """

    def __init__(self, started: float, *, local: bool = False) -> None:
        self.visitors = Visitors(hosts=() if local else None, links=False)
        self.service: Service | None = None
        self.following: Following | None = None
        self.started = started
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self.visitors.refusal(scope)
        if refusal is not None:
            status, kind, body = _words(refusal.status, refusal.message)
        else:
            status, kind, body = await self._answer(scope["method"], scope["path"], scope.get("query_string", b""))
        headers = [
            (b"content-type", kind),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        if status == 405:
            headers.append((b"allow", ", ".join(PATHS[scope["path"]]).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, method: str, path: str, query: bytes) -> Answer:
        if path not in PATHS:
            return _words(404, "There are /live, /ready, /status, /metrics and /drain here.")
        if method not in PATHS[path]:
            return _words(405, f"{method[:20]} is not allowed here.")
        if path == "/live":
            return _words(200, "live") if self.alive else _words(503, "Nothing has moved for too long.")
        if path == "/ready":
            why = self.unready
            return _words(503, why) if why else _words(200, "ready")
        if path == "/status":
            return 200, JSON, json.dumps(self.status()).encode()
        if path == "/metrics":
            return 200, EXPOSITION, self.service.serving.metrics.page() if self.service else b""
        return await self._drain(query)

    @property
    def alive(self) -> bool:
        """Whether loading moves or the engine's loop turns. An engine that is being started again moves."""
        if self.following is not None:
            return self.following.alive
        if self.service is None or not self.service.engine.begun:
            return time.monotonic() - self.started < STARTING_SECONDS
        return self.service.engine.alive

    @property
    def unready(self) -> str:
        """Why no request should be sent here, empty when one should."""
        if self.draining or (self.service is not None and self.service.serving.gate.leaving):
            return "draining"
        if self.following is not None:
            return self.following.unready
        if self.service is None:
            return self.phase
        engine = self.service.engine
        return "" if engine.ready else self.phase if engine.alive else "the engine gives no sign of life"

    @property
    def phase(self) -> str:
        """`loading`, `warming`, `ready` or `draining`."""
        if self.draining or (self.service is not None and self.service.serving.gate.leaving):
            return "draining"
        if self.following is not None:
            return self.following.phase
        if self.service is None:
            return "loading"
        engine = self.service.engine
        if engine.ready:
            return "ready"
        return "warming" if "warmup" in engine.phases else "loading"

    def status(self) -> dict[str, Any]:
        """What this pod knows of itself. Bytes and seconds; what is not known yet is left out."""
        if self.following is not None:
            return self.following.status(self.started)
        found: dict[str, Any] = {"phase": self.phase, "version": plimsoll.__version__, "startup": self._startup()}
        service = self.service
        if service is None:
            return found | {"observed": {}, "predicted": {}, "running": 0, "waiting": 0, "cacheUsage": 0.0}
        engine, stats = service.engine, service.engine.stats
        used = stats.blocks_total - stats.blocks_free - stats.blocks_cached
        return (
            found
            | {
                "model": service.config.served_name,
                "observed": self._observed(engine.info),
                "serving": _serving(engine.info),
                "ranks": _ranks(engine.info, stats.peaks) if engine.ready else [],
                "predicted": dict(engine.info.predicted) if engine.info else {},
                "running": stats.running,
                "waiting": stats.waiting,
                "inFlight": service.serving.gate.inside,
                "cacheUsage": round(used / (stats.blocks_total or 1), 4),
                "restarts": engine.restarts,
            }
            | ({} if engine.membership is None else {"ordinal": 0, "waitingFor": engine.waiting_for})
        )

    def _observed(self, info: "EngineReady | None") -> dict[str, int]:
        assert self.service is not None
        measured = {} if info is None else info.observed
        found = {term: size for term, size in measured.items() if term != "resident"}
        pid = self.service.engine.pid
        peak = self.service.engine.stats.device_peak or (None if pid is None else peak_bytes(pid))
        return found if peak is None else found | {"peak": peak}

    def _startup(self) -> dict[str, Any]:
        """Where the time went: `start` is the process, its imports and its headers; then load and warm-up."""
        service = self.service
        phases = service.engine.phases if service else {}
        taken = {name: phase.seconds for name, phase in phases.items()}
        ready_at = service.ready_at if service else None
        elapsed = (time.monotonic() if ready_at is None else ready_at) - self.started
        found: dict[str, Any] = {"start": {"seconds": round(max(0.0, elapsed - sum(taken.values())), 3)}}
        if weights := phases.get("weights"):
            seconds = taken["weights"] + taken.get("cache", 0.0)
            found["load"] = {
                "bytes": weights.done_bytes, "total": weights.total_bytes, "seconds": round(seconds, 3),
            }  # fmt: skip
        if weights and weights.ranks:
            found["ranks"] = [_rank_load(one) for one in weights.ranks]
        if "warmup" in taken:
            found["warmup"] = {"seconds": round(taken["warmup"], 3)}
        return found

    async def _drain(self, query: bytes) -> Answer:
        """Readiness turns false at once; the answer comes when nothing is left, or the time for it is up."""
        try:
            quiet = float(parse_qs(query.decode("ascii")).get("quiet", [str(QUIET_SECONDS)])[-1])
        except ValueError:
            quiet = -1.0
        if not 0 <= quiet <= 3600:
            return _words(400, "quiet is a number of seconds, from 0 to 3600.")
        if self.following is not None:
            return 200, JSON, await self.following.answer_drain()
        began = time.monotonic()
        if self.service is None:
            self.draining = True
            done, left = True, 0
        else:
            done = await self.service.leave(quiet)
            left = self.service.serving.gate.inside
        seconds = round(time.monotonic() - began, 3)
        return 200, JSON, json.dumps({"drained": done, "inFlight": left, "seconds": seconds}).encode()


def _serving(info: "EngineReady | None") -> dict[str, Any]:
    """How this replica computes; empty before it does."""
    if info is None:
        return {}
    test = info.determinism
    found = {"deterministic": test.deterministic, "kernels": info.kernels, "digest": test.digest, "reason": test.reason}
    return {name: value for name, value in found.items() if value != ""}


def _words(status: int, text: str) -> Answer:
    return status, TEXT, text.encode() + b"\n"


def _rank_load(one: "RankLoad") -> dict[str, float]:
    """How far a rank has loaded its share of the weights."""
    seconds = round(one.seconds, 3)
    return {"rank": one.rank, "bytes": one.done_bytes, "total": one.total_bytes, "seconds": seconds}


def _ranks(info: "EngineReady | None", peaks: dict[int, int]) -> list[dict[str, int]]:
    """What each rank holds, where there are several. Bytes."""
    found = []
    for one in [] if info is None else info.ranks:
        known = {"rank": one.rank, "weights": one.weights, "kvCache": one.kv_cache}
        peak = peak_bytes(one.pid) if one.pid else peaks.get(one.rank)
        found.append(known if peak is None else known | {"peak": peak})
    return found
