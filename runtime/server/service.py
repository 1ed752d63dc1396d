"""One engine and its endpoint, from first byte loaded to last request finished."""

import asyncio
import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import structlog
from msgspec.structs import replace

from plimsoll.api.draft import FIELD
from plimsoll.api.errors import PlimsollError
from plimsoll.checkpoint.checkpoint import Checkpoint
from plimsoll.checkpoint.contents import contents_of
from plimsoll.checkpoint.draft_tokens import refuse_other_tokens
from plimsoll.checkpoint.open import open_checkpoint
from plimsoll.checkpoint.tokenizer import Tokenizer, load_tokenizer
from plimsoll.runtime.config import EngineConfig, ServerConfig, field_of
from plimsoll.runtime.engine.group.membership import Membership
from plimsoll.runtime.engine.transport.client import EngineClient
from plimsoll.runtime.machine.heap import keep_what_is_loaded, return_freed_memory, steady_heap
from plimsoll.runtime.messages import EngineReady, LoadProgress
from plimsoll.runtime.sampling_defaults import sampling_defaults
from plimsoll.runtime.server.app import build_app
from plimsoll.runtime.server.listener import http_server, is_local, listen
from plimsoll.runtime.server.loop import run
from plimsoll.runtime.server.metrics import Metrics
from plimsoll.runtime.server.serving import Serving

#: For `steady_heap`: bytes of a block that goes back at once, and of what is kept for the next request.
LARGE_BYTES, SLACK_BYTES = 1 << 20, 8 << 20


class Service:
    """Runs in a thread of its own (`start`), so that the caller's stays free for signals and a terminal, or in the
    caller's event loop (`serve`).

    The endpoint listens from then on: probes get true answers while the model loads.

    Args:
        engine: the model and its memory.
        server: the endpoint.
        checkpoint: opened from `engine.model`.
        patient: whether an engine that dies before it was ever ready is started again.
        membership: this machine's place in a group over several, which it leads.

    Attributes:
        ready_at: time.monotonic() of when a token was first generated, None before.

    Raises:
        SpecError: the address cannot be bound, the API keys file cannot be used, or the draft model has other tokens.
        CheckpointError: the tokenizer cannot be read, or the draft model.
    """

    def __init__(
        self,
        engine: EngineConfig,
        server: ServerConfig,
        checkpoint: Checkpoint,
        *,
        patient: bool = True,
        membership: Membership | None = None,
    ) -> None:
        self.config = server
        # Bodies go back to the system when they have been read. So does what loading a large vocabulary took, before
        # the processes that prepare requests are forked with it.
        steady_heap(LARGE_BYTES, SLACK_BYTES)
        self.tokenizer: Tokenizer = load_tokenizer(checkpoint, server.chat_template)
        if engine.draft_model is not None:
            draft = open_checkpoint(Path(engine.draft_model))
            refuse_other_tokens(self.tokenizer, draft, field_of(engine, FIELD) or FIELD)
        return_freed_memory()
        # What was planned, and tokenized by, is what the engine loads: now, and whenever it is started again.
        contents = engine.contents or contents_of(checkpoint.path)
        ends = {*engine.end_token_ids, *self.tokenizer.eos_token_ids}
        engine = replace(engine, contents=contents, end_token_ids=tuple(sorted(ends)))
        self.engine = EngineClient(engine, patient=patient, membership=membership)
        self.engine.on_leaving = self._pod_leaves
        metrics = Metrics(
            server.served_name, lambda: self.engine.stats, lambda: self.engine.info, lambda: self.engine.restarts
        )
        self.engine.on_step = metrics.step
        defaults, notices = sampling_defaults(checkpoint.generation_config)
        self._log = structlog.get_logger("plimsoll.service")
        for notice in notices:
            self._log.warning(notice)
        self.serving = Serving(
            engine=self.engine,
            tokenizer=self.tokenizer,
            config=server,
            metrics=metrics,
            defaults=defaults,
            vocab_size=checkpoint.facts.vocab_size,
            digest=checkpoint.digest(),
        )
        self.socket = listen(server.host, server.port)
        self.socket_name: tuple[str, int] = self.socket.getsockname()[:2]
        try:
            self.app = build_app(self.serving, local=is_local(self.socket))
        except BaseException:
            self.socket.close()
            raise
        self.ready_at: float | None = None
        self.settled = threading.Event()
        """Set once the model is ready, or the service has ended."""
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._wake: Any = None
        self._stopping = False
        self._quiet = 0.0
        self._letting_go: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._work, name=f"plimsoll-{server.served_name}")

    @property
    def url(self) -> str:
        host, port = self.socket_name
        return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"

    @property
    def progress(self) -> LoadProgress | None:
        return self.engine.progress

    @property
    def info(self) -> EngineReady | None:
        return self.engine.info

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Begins to drain; may be called from a signal handler, and more than once."""
        self._stop.set()
        if self._wake is not None:
            with contextlib.suppress(RuntimeError):
                self._wake()

    def wait(self, seconds: float) -> None:
        """Until the service has ended, up to `seconds`."""
        self._thread.join(seconds)

    def join(self) -> None:
        """Waits for the end. Raises PlimsollError when the engine could not start, or died too often."""
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _work(self) -> None:
        try:
            run(self._serve())
        except BaseException as error:
            self.error = error
        finally:
            self.settled.set()

    async def _serve(self) -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._wake = lambda: loop.call_soon_threadsafe(stopped.set)
        if self._stop.is_set():
            stopped.set()
        await self.serve(stopped)

    async def serve(self, stopped: asyncio.Event, quiet: float | None = None) -> None:
        """Loads, serves until `stopped`, and drains.

        Args:
            quiet: None refuses new requests from then on. In a cluster, where they go on arriving for a while: serve
                them until none has come for so many seconds.

        Raises PlimsollError when the engine could not start, or died too often.
        """
        self._quiet = quiet or 0.0
        # Each request that may wait has a connection, and so have some that only look.
        http = http_server(self.app, max(self.config.max_connections, 2 * self.engine.config.most_sequences))
        listening = asyncio.create_task(http.serve([self.socket]))
        stopping = asyncio.create_task(stopped.wait())
        try:
            await self._load(stopping)
            await self._until(stopping)
            if quiet is None:
                self.serving.gate.close()
            if not await self.leave(0.0 if quiet is None else quiet):
                self.serving.gate.close()
        finally:
            stopping.cancel()
            http.should_exit = not self.serving.gate.inside
            if http.should_exit:
                # The last request may come while idle connections close: the engine outlives the server.
                await listening
            await self.engine.close()
            http.should_exit = True
            await listening
            self.serving.preparing.close()

    async def leave(self, quiet: float) -> bool:
        """`drain`, for good: this pod is about to stop."""
        self._stopping = True
        return await self.drain(quiet)

    async def drain(self, quiet: float) -> bool:
        """Lets go: nothing is inside and nothing has come for `quiet` seconds, or the time for it is up.

        A second call waits for the same end. Returns whether nothing is left.
        """
        gate, limit = self.serving.gate, self.config.drain_timeout
        if not gate.draining:
            self._log.info("draining", requests=gate.inside, seconds=limit)
        gate.drain()
        # No request goes to a server that never was ready.
        done = await gate.quieted(quiet if self.ready_at is not None else 0.0, limit)
        if not done and gate.inside:
            self._log.warning("drain timed out", requests=gate.inside)
        return not gate.inside

    def _pod_leaves(self, pod: str) -> None:
        """Another pod of the group is about to stop: drains, and has the group begin again without it."""
        if self._letting_go is None or self._letting_go.done():
            self._letting_go = asyncio.create_task(self._let_go(pod))

    async def _let_go(self, pod: str) -> None:
        self._log.info("a pod of the group leaves", pod=pod)
        await self.drain(self._quiet)
        if self._stopping:
            # This pod leaves too: all others wait for its end.
            return
        self.serving.gate.reopen()
        await self.engine.renew()

    async def _until(self, stopping: asyncio.Task[Any]) -> None:
        """Serves until `stopping` is done. Raises PlimsollError when no engine will run any more."""
        given_up = asyncio.create_task(self.engine.given_up())
        lost = asyncio.create_task(self.serving.preparing.lost())
        try:
            await asyncio.wait((stopping, given_up, lost), return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                raise PlimsollError(f"nothing is served any more: {(given_up if given_up.done() else lost).result()}")
        finally:
            given_up.cancel()
            lost.cancel()

    async def _load(self, stopping: asyncio.Task[Any]) -> None:
        async def load() -> None:
            await self.engine.start()
            await self.engine.wait_ready()

        loading = asyncio.create_task(load())
        await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            keep_what_is_loaded()
            self.ready_at = time.monotonic()
            self._log.info("ready", url=self.url, model=self.config.served_name, **_facts(self.info))
            self.settled.set()
        else:
            loading.cancel()
            with contextlib.suppress(asyncio.CancelledError, PlimsollError):
                await loading


def _facts(info: EngineReady | None) -> dict[str, Any]:
    """What the log says of an engine that has become ready."""
    if info is None:
        return {}
    test = info.determinism
    found: dict[str, Any] = {"kernels": info.kernels, "deterministic": test.deterministic}
    found |= {"self_test": test.digest} if test.digest else {}
    found |= {"reason": test.reason} if test.reason else {}
    return found | ({"ranks": len(info.ranks)} if info.ranks else {})
