"""The front end's side of the engine: requests in, tokens out, and a new process when the old one dies."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable

from plimsoll.api.errors import PlimsollError
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.group.membership import Membership
from plimsoll.runtime.engine.transport.spawn import EngineProcess
from plimsoll.runtime.messages import (
    AbortRequests,
    EngineFailed,
    EngineReady,
    EngineRequest,
    EngineStats,
    FromEngine,
    GroupWaiting,
    LoadProgress,
    PodLeaving,
    RequestTimes,
    Shutdown,
    StepOutputs,
    ToEngine,
    TokenOutput,
    Vocabulary,
)

logger = logging.getLogger("plimsoll.engine.client")

QUICK_CRASHES = 8
"""Crashes in a row, each within STEADY_SECONDS of readiness or before it, after which no new process is started."""

FAILED_STARTS = 2
"""Starts in a row of a group of ranks, after it was once ready, that did not make it ready again: then the process that
runs it should end, so that all of it is started again."""

STEADY_SECONDS = 30.0

BACKOFF_SECONDS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Pause before each restart of such a row; the last one repeats."""

CLOSE_SECONDS = 5.0
"""Seconds between the request to stop and the kill of an engine; a long step may be under way."""


class EngineBusy(PlimsollError):  # noqa: N818 - the name the server and its users know it by
    """The queue is full: the request was not taken and may be sent again later."""


class EngineDead(PlimsollError):  # noqa: N818
    """The engine process is not there: it died under the request, is loading, or cannot be started."""


class _Stream:
    """What has arrived for one request and not been taken yet; outputs that pile up become one."""

    def __init__(self) -> None:
        self._output: TokenOutput | None = None
        self._error: EngineDead | None = None
        self._arrived = asyncio.Event()

    def put(self, output: TokenOutput) -> None:
        if self._output is None:
            self._output = output
        else:
            _merge(self._output, output)
        self._arrived.set()

    def fail(self, error: EngineDead) -> None:
        self._error = error
        self._arrived.set()

    async def take(self) -> TokenOutput:
        """Waits for an output. Raises EngineDead once the process died and all it said was taken."""
        await self._arrived.wait()
        output, self._output = self._output, None
        if output is None:
            assert self._error is not None
            raise self._error
        if self._error is None:
            self._arrived.clear()
        return output


def _merge(into: TokenOutput, output: TokenOutput) -> None:
    into.token_ids = into.token_ids + output.token_ids
    if output.logprobs is not None:
        into.logprobs = (into.logprobs or []) + output.logprobs
    if into.prompt_logprobs is None:
        into.prompt_logprobs = output.prompt_logprobs
    into.num_cached_tokens = max(into.num_cached_tokens, output.num_cached_tokens)
    into.finish_reason, into.stop_token_id = output.finish_reason, output.stop_token_id
    into.stop_logprobs = output.stop_logprobs
    into.error, into.busy = output.error, output.busy


class EngineClient:
    """One engine process and all requests to it. Belongs to the event loop that `start` runs in.

    The thread of that loop must outlive the engine: the kernel ends the engine with it (`die_with_parent`).

    Args:
        config: settings of the engine.
        patient: whether a process that dies before one was ever ready is started again. A container need not be: who
            runs it starts it again, and shows why.
        membership: the place of this machine in a group over several, which the engine leads.

    Attributes:
        info: what the engine said when it last became ready, None before it first did.
        progress: how far loading is; of the last process.
        phases: the last word on each phase of loading; of the last process.
        stats: the engine's last word on itself; its counters start again when the engine does.
        restarts: how many times the engine died and was started again.
        failure: why no engine is running or will be, None while there is hope.
        waiting_for: names of machines of the group that have not joined.
        on_leaving: called with the name of a machine of the group that is about to stop; `renew` lets it go.
        vocabulary: the tokenizer's; each process gets it before its first request with a grammar or a thought's budget.
        on_step: called with statistics and clocks of ended requests after each engine step.
    """

    def __init__(self, config: EngineConfig, *, patient: bool = True, membership: Membership | None = None) -> None:
        self.config = config
        self.membership = membership
        self.waiting_for: list[str] = []
        self.on_leaving: Callable[[str], None] | None = None
        self.vocabulary: Vocabulary | None = None
        self._renewing = False
        self.info: EngineReady | None = None
        self.progress: LoadProgress | None = None
        self.phases: dict[str, LoadProgress] = {}
        self.stats = EngineStats()
        self.restarts = 0
        self.failure: str | None = None
        self.on_step: Callable[[EngineStats, list[RequestTimes]], None] | None = None
        self._patient = patient
        self._streams: dict[str, _Stream] = {}
        self._outgoing: list[ToEngine] = []
        self._running: EngineProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        self._closing = False

    @property
    def ready(self) -> bool:
        """Whether a process runs that has loaded the model, has generated a token, and gives signs of life."""
        running = self._running
        if running is None or running.ready_at is None or self._closing:
            return False
        return not running.watch.suspect

    @property
    def begun(self) -> bool:
        """Whether `start` has been called."""
        return self._supervisor is not None

    @property
    def alive(self) -> bool:
        """Whether things move: the engine gives signs of life, or is loading or about to be started again."""
        if self.failure is not None or self._closing or self._supervisor is None:
            return False
        return self._running is None or not self._running.watch.suspect

    @property
    def pid(self) -> int | None:
        """Of the engine process, while there is one."""
        return None if self._running is None else self._running.pid

    @property
    def inflight(self) -> int:
        """Requests whose iterator is open."""
        return len(self._streams)

    async def start(self) -> None:
        """Starts the process and its supervision; `wait_ready` tells when it has loaded."""
        if self._supervisor is None:
            self._supervisor = asyncio.create_task(self._supervise())

    async def wait_ready(self, timeout: float | None = None) -> EngineReady:
        """Raises EngineDead with the engine's own words when it cannot start, TimeoutError when it takes longer."""
        async with asyncio.timeout(timeout):
            await self._settled.wait()
        if self.failure is not None:
            raise EngineDead(self.failure)
        assert self.info is not None
        return self.info

    async def available(self, seconds: float) -> None:
        """Waits for an engine that takes requests, up to `seconds`. Raises EngineDead where none comes."""
        try:
            await self.wait_ready(seconds)
        except TimeoutError:
            raise EngineDead(f"no engine was ready within {seconds:g} s", fix="Try again shortly") from None
        if not self.ready:
            raise EngineDead("the engine is shutting down")

    async def given_up(self) -> str:
        """Waits until no engine runs or will be started again; returns why."""
        if self._supervisor is not None:
            await asyncio.wait((self._supervisor,))
            if self.failure is None and not self._supervisor.cancelled() and (error := self._supervisor.exception()):
                self._give_up(f"supervision of the engine failed: {type(error).__name__}: {error}")
        return self.failure or "the engine is shut down"

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenOutput, None]:
        """Outputs of one request, the last with its `finish_reason`. Leaving early for any reason aborts the request.

        Raises:
            EngineBusy: the engine's queue is full.
            EngineDead: no engine is ready, or it died before the request had ended.
        """
        if not self.ready:
            raise EngineDead(self.failure or "the engine is not ready", fix="Try again shortly")
        if request.request_id in self._streams:
            raise ValueError(f"a request {request.request_id!r} is running")
        stream = self._streams[request.request_id] = _Stream()
        finished = False
        if request.params.grammar is not None or request.params.thought is not None:
            self._teach()
        self._send(request)
        try:
            while not finished:
                output = await stream.take()
                finished = output.finish_reason is not None
                if output.busy:
                    raise EngineBusy(output.error or "the queue is full")
                yield output
        finally:
            del self._streams[request.request_id]
            if not finished:
                self._send(AbortRequests([request.request_id]))

    def abort(self, request_ids: Iterable[str]) -> None:
        """Ends requests; their iterators end with `finish_reason` abort. Unknown ids are ignored."""
        known = [request_id for request_id in request_ids if request_id in self._streams]
        if known:
            self._send(AbortRequests(known))

    async def renew(self) -> None:
        """Ends the engine as it should, and has it started again. Requests still running end with EngineDead."""
        running = self._running
        if running is not None:
            self._renewing = True
            self._send(Shutdown())
            self._flush()
            await running.wait(CLOSE_SECONDS)

    async def close(self) -> None:
        """Stops the engine. Requests still running end with EngineDead."""
        obeys = self.ready
        self._closing = True
        self._send(Shutdown())
        self._flush()
        self._fail_streams("the engine is shutting down")
        if self._running is not None and obeys:
            await self._running.wait(CLOSE_SECONDS)
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        self.failure = self.failure or "the engine is shut down"
        self._settled.set()

    def _teach(self) -> None:
        """Gives the vocabulary to a process that does not have it."""
        running = self._running
        if running is not None and not running.taught and self.vocabulary is not None:
            running.taught = True
            self._send(self.vocabulary)

    def _send(self, message: ToEngine) -> None:
        """Queues a message; all of one turn of the event loop go out together."""
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outgoing.append(message)

    def _flush(self) -> None:
        batch, self._outgoing = self._outgoing, []
        # Without a process there is nothing to send: its requests have ended with it.
        if batch and self._running is not None:
            self._running.send(batch)

    async def _supervise(self) -> None:
        quick = failed = 0
        while not self._closing:
            try:
                running = EngineProcess(self.config, self.membership)
                reason = await self._live(running)
            except OSError as error:
                self._give_up(f"the engine process cannot be started or ended: {error}")
                return
            if self._renewing:
                self._renewing, quick, failed = False, 0, 0
                self.stats = EngineStats()
                continue
            if running.refused is not None and self.info is None:
                self._give_up(running.refused)
                return
            failed = failed + 1 if running.ready_at is None else 0
            lone = self.membership is None or failed >= FAILED_STARTS
            if self.info is None and not self._patient and lone:
                self._give_up(f"the engine died while it loaded: {reason}")
                return
            steady = running.ready_at is not None and time.monotonic() - running.ready_at > STEADY_SECONDS
            quick = 1 if steady else quick + 1
            if self.info is not None and self.info.ranks and failed >= FAILED_STARTS:
                self._give_up(f"the ranks could not be started again {failed} times in a row, at last: {reason}")
                return
            if quick >= QUICK_CRASHES:
                self._give_up(f"the engine died {quick} times in a row, at last: {reason}")
                return
            logger.error("the engine died and is started again: %s", reason)
            await asyncio.sleep(BACKOFF_SECONDS[min(quick, len(BACKOFF_SECONDS)) - 1])
            self.restarts += 1
            self.stats = EngineStats()

    async def _live(self, running: EngineProcess) -> str:
        """One process from start to end; returns why it ended. Requests that it leaves behind have failed by then."""
        reason = "the server stopped it"
        try:
            self.phases = {}
            place = self.membership
            # Until the engine has looked, none has joined.
            self.waiting_for = [] if place is None else [place.name_of(one) for one in range(1, place.nodes)]
            await running.start()
            self._running = running
            reason = await self._follow(running)
        finally:
            self._running = None
            self._settled.clear()
            self._fail_streams(f"the engine died: {reason}")
            await running.close()
        return reason

    async def _follow(self, running: EngineProcess) -> str:
        """Passes on all messages of the process, until it ends, hangs or sends an unknown message; returns why."""
        reader = asyncio.create_task(self._read(running))
        ended = asyncio.create_task(running.ended())
        hung = asyncio.create_task(running.hung(self._judge))
        tasks = (reader, ended, hung)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return running.refused or ended.result()
            return hung.result() if hung.done() else f"its messages cannot be read: {reader.exception()}"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _judge(self) -> None:
        """Follows the engine's signs of life: who waits for a ready engine goes on waiting while it may hang."""
        if self.ready:
            self._settled.set()
        else:
            self._settled.clear()

    async def _read(self, running: EngineProcess) -> None:
        while True:
            self._hear(running, await running.receive())

    def _hear(self, running: EngineProcess, message: FromEngine) -> None:
        if isinstance(message, StepOutputs):
            for output in message.outputs:
                if stream := self._streams.get(output.request_id):
                    stream.put(output)
            stepped = message.stats.steps != self.stats.steps
            self.stats = message.stats
            if self.on_step is not None and (stepped or message.finished):
                try:
                    self.on_step(message.stats, message.finished)
                except Exception:
                    logger.exception("a listener to the engine's steps failed")
        elif isinstance(message, LoadProgress):
            self.progress = self.phases[message.phase] = message
        elif isinstance(message, GroupWaiting):
            self.waiting_for = message.pods
        elif isinstance(message, PodLeaving):
            if self.on_leaving is not None:
                self.on_leaving(message.pod)
        elif isinstance(message, EngineReady):
            self.info = message
            self._settled.set()
        elif isinstance(message, EngineFailed):
            running.refused = message.error

    def _fail_streams(self, reason: str) -> None:
        for stream in self._streams.values():
            stream.fail(EngineDead(reason, fix="Try again shortly"))

    def _give_up(self, reason: str) -> None:
        self.failure = reason
        self._settled.set()
