"""One engine process as its parent sees it: started, spoken to, killed."""

import asyncio
import contextlib
import sys
import time

import zmq
import zmq.asyncio

from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.wire import Binding, decode_message, encode_batch, frame
from plimsoll.runtime.messages import FromEngine, ToEngine

LAST_WORDS_SECONDS = 0.05
"""After the process has ended, silence of this length means that all it said has arrived."""


class EngineProcess:
    """Attributes:
    ready_at: time.monotonic() of its EngineReady, None while it loads.
    refused: why it will not start, when it said so.
    last_word: time.monotonic() of its last message, or of its start.
    """

    def __init__(self, config: EngineConfig) -> None:
        """Raises OSError where the sockets cannot be made."""
        self.ready_at: float | None = None
        self.refused: str | None = None
        self.last_word = time.monotonic()
        self._context = zmq.asyncio.Context()
        # Requests go out through a plain socket: without bounds sending never waits, so there is nothing to await.
        self._push: zmq.Socket[bytes] = zmq.Context.shadow(self._context).socket(zmq.PUSH)
        self._pull = self._context.socket(zmq.PULL)
        self._process: asyncio.subprocess.Process | None = None
        try:
            self._binding = Binding(config, self._push, self._pull)
        except zmq.ZMQError as error:
            self._close_sockets()
            raise OSError(error.errno, str(error)) from None

    async def start(self) -> None:
        """Raises OSError."""
        # -P: the working folder may hold anything, and must not provide modules. A session of its own: Ctrl-C in a
        # terminal is the parent's to handle.
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "plimsoll.runtime.engine.process",
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        stdin = self._process.stdin
        assert stdin is not None
        # A child that died before it read anything has closed the pipe; uvloop calls that a RuntimeError. Its end is
        # noticed like any other.
        with contextlib.suppress(ConnectionError, RuntimeError):
            # The pipe stays open: its end is how the process learns that we are gone.
            stdin.write(frame(self._binding.handover))
            await stdin.drain()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def send(self, batch: list[ToEngine]) -> None:
        """All messages at once. What cannot be delivered is dropped: the process is gone, and its end is noticed."""
        with contextlib.suppress(zmq.Again):
            self._push.send(encode_batch(batch), zmq.NOBLOCK)

    async def receive(self) -> FromEngine:
        """The next message. Raises msgspec.DecodeError."""
        data = await self._pull.recv()
        self.last_word = time.monotonic()
        message: FromEngine = decode_message(data)
        return message

    async def ended(self) -> str:
        """Waits for its end and for its last words to be received; returns how it ended."""
        assert self._process is not None
        status = await self._process.wait()
        heard = None
        while heard != self.last_word:
            heard = self.last_word
            await asyncio.sleep(LAST_WORDS_SECONDS)
        return f"killed by signal {-status}" if status < 0 else f"exit status {status}"

    async def wait(self, seconds: float) -> None:
        """Until it has ended, or for so long."""
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._process.wait()

    async def close(self) -> None:
        """Makes sure that the process is gone, and takes its sockets away."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        self._close_sockets()
        self._binding.remove()

    def _close_sockets(self) -> None:
        self._push.close(linger=0)
        self._pull.close(linger=0)
        self._context.term()
