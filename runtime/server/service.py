"""One engine and its endpoint, from first byte loaded to last request finished."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine
from typing import Any

import structlog
import uvicorn

from plimsoll.api.errors import PlimsollError, SpecError
from plimsoll.checkpoint.checkpoint import Checkpoint
from plimsoll.checkpoint.tokenizer import Tokenizer, load_tokenizer
from plimsoll.runtime.config import EngineConfig, ServerConfig
from plimsoll.runtime.engine.client import EngineClient
from plimsoll.runtime.messages import EngineReady, LoadProgress
from plimsoll.runtime.server.app import build_app
from plimsoll.runtime.server.connection import Connection
from plimsoll.runtime.server.metrics import Metrics
from plimsoll.runtime.server.params import model_defaults
from plimsoll.runtime.server.serving import Serving

#: Seconds that connections have to close once every request has ended.
CLOSE_SECONDS = 5


class Http(uvicorn.Server):
    """uvicorn without its signal handlers: the service drains before the server stops listening."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


class Service:
    """Runs in a thread of its own, so that the caller's stays free for signals and a terminal.

    The endpoint listens from `start` on: probes get true answers while the model loads.

    Args:
        engine: the model and its memory.
        server: the endpoint.
        checkpoint: opened from `engine.model`.

    Raises:
        SpecError: the address cannot be bound, or the API keys file cannot be used.
        CheckpointError: the tokenizer cannot be read.
    """

    def __init__(self, engine: EngineConfig, server: ServerConfig, checkpoint: Checkpoint) -> None:
        self.config = server
        self.tokenizer: Tokenizer = load_tokenizer(checkpoint, server.chat_template)
        self.engine = EngineClient(engine)
        metrics = Metrics(
            server.served_name, lambda: self.engine.stats, lambda: self.engine.info, lambda: self.engine.restarts
        )
        self.engine.on_step = metrics.step
        self.serving = Serving(
            engine=self.engine,
            tokenizer=self.tokenizer,
            config=server,
            metrics=metrics,
            defaults=model_defaults(checkpoint.generation_config),
            vocab_size=checkpoint.facts.vocab_size,
            digest=checkpoint.digest(),
        )
        self.app = build_app(self.serving)
        self.socket = _listen(server.host, server.port)
        self.settled = threading.Event()
        """Set once the model is ready, or the service has ended."""
        self.error: BaseException | None = None
        self._log = structlog.get_logger("plimsoll.service")
        self._stop = threading.Event()
        self._wake: Any = None
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
        self.socket_name: tuple[str, int] = self.socket.getsockname()[:2]
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
            _run(self._serve())
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
        http = Http(
            uvicorn.Config(
                self.app,
                http=Connection,
                ws="none",
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=CLOSE_SECONDS,
            )
        )
        listening = asyncio.create_task(http.serve([self.socket]))
        stopping = asyncio.create_task(stopped.wait())
        try:
            await self._load(stopping)
            await self._until(stopping)
            self.serving.gate.close()
            self._log.info("draining", requests=self.serving.gate.inside, seconds=self.config.drain_timeout)
            if not await self.serving.gate.emptied(self.config.drain_timeout):
                self._log.warning("drain timed out", requests=self.serving.gate.inside)
        finally:
            stopping.cancel()
            await self.engine.close()
            http.should_exit = True
            await listening

    async def _until(self, stopping: asyncio.Task[Any]) -> None:
        """Serves until told to stop. Raises PlimsollError when no engine will run any more."""
        given_up = asyncio.create_task(self.engine.given_up())
        try:
            await asyncio.wait((stopping, given_up), return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                raise PlimsollError(f"nothing is served any more: {given_up.result()}")
        finally:
            given_up.cancel()

    async def _load(self, stopping: asyncio.Task[Any]) -> None:
        async def load() -> None:
            await self.engine.start()
            await self.engine.wait_ready()

        loading = asyncio.create_task(load())
        await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            self._log.info("ready", url=self.url, model=self.config.served_name)
            self.settled.set()
        else:
            loading.cancel()
            with contextlib.suppress(asyncio.CancelledError, PlimsollError):
                await loading


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except (OSError, OverflowError, UnicodeError) as error:
        raise SpecError(f"is no address to listen on: {error}", field="server-name", value=host) from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except (OSError, OverflowError) as error:
        listener.close()
        raise SpecError(
            f"cannot listen on {host} port {port}: {error}",
            field="server-port",
            fix="Choose another with --server-port",
        ) from None
    return listener


def _run(work: Coroutine[Any, Any, None]) -> None:
    """On uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)
