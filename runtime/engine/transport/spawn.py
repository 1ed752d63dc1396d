"""One engine process as its parent sees it: started, spoken to, killed."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable

import zmq
import zmq.asyncio

from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.group.membership import Membership
from plimsoll.runtime.engine.transport.watch import Watch
from plimsoll.runtime.engine.transport.wire import Binding, decode_message, encode_batch
from plimsoll.runtime.framed import frame
from plimsoll.runtime.messages import EngineReady, FromEngine, Heartbeat, ToEngine

LAST_WORDS_SECONDS = 0.05
"""After the process has ended, silence of this length means that all it said has arrived."""

WATCH_SECONDS = 0.5
"""Between two looks at its signs of life, or a twentieth of the bound where that is less."""

REAP_SECONDS = 2.0
"""The kernel kills ranks with rank 0; that takes as long as giving back their memory does."""

KILL_SECONDS = 10.0
"""A process that SIGKILL does not end in so long is stuck in the kernel, and may never end."""


class EngineProcess:
    """Attributes:
    ready_at: time.monotonic() of its EngineReady, None while it loads.
    refused: why it will not start, when it said so.
    watch: whether it hangs.
    taught: whether it has been sent the vocabulary.
    """

    def __init__(self, config: EngineConfig, membership: Membership | None = None) -> None:
        """Raises OSError where the sockets cannot be made."""
        self.ready_at: float | None = None
        self.refused: str | None = None
        self.watch = Watch(config.hang_timeout)
        self.taught = False
        self._hang_seconds = config.hang_timeout
        self._heard = 0
        self._context = zmq.asyncio.Context()
        # Requests go out through a plain socket: without bounds sending never waits, so there is nothing to await.
        self._push: zmq.Socket[bytes] = zmq.Context.shadow(self._context).socket(zmq.PUSH)
        self._pull = self._context.socket(zmq.PULL)
        self._process: asyncio.subprocess.Process | None = None
        self._ranks: list[int] = []
        try:
            self._binding = Binding(config, self._push, self._pull, membership)
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
            "plimsoll.runtime.engine.transport.process",
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        stdin = self._process.stdin
        assert stdin is not None
        # A child that died before it read anything has closed the pipe; uvloop calls that a RuntimeError. Its end is
        # noticed like any other.
        with contextlib.suppress(ConnectionError, RuntimeError):
            # The pipe stays open: its end, too, is how the process learns that we are gone.
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
        self._heard += 1
        message: FromEngine = decode_message(data)
        self.watch.hear(message)
        if isinstance(message, EngineReady):
            self.ready_at = time.monotonic()
            self._ranks = [rank.pid for rank in message.ranks[1:] if rank.pid]
            self.watch.serves()
        elif isinstance(message, Heartbeat):
            # The socket of heartbeats was connected last, so all of them are: no other process needs the folder,
            # and it stays behind if both of us are killed.
            self._binding.remove()
        return message

    async def hung(self, look: Callable[[], None]) -> str:
        """Waits until it counts as hung; returns why. Calls `look` each time its signs of life were judged.

        Time in which this process was itself kept from running does not count.
        """
        pause = min(WATCH_SECONDS, self._hang_seconds / 20)
        while not self.watch.hung:
            before = time.monotonic()
            await asyncio.sleep(pause)
            self.watch.wait(min(time.monotonic() - before, 2 * pause))
            look()
        return self.watch.hung

    async def ended(self) -> str:
        """Waits for its end and for its last words to be received; returns how it ended."""
        assert self._process is not None
        status = await self._process.wait()
        heard = None
        while heard != self._heard:
            heard = self._heard
            await asyncio.sleep(LAST_WORDS_SECONDS)
        return f"killed by signal {-status}" if status < 0 else f"exit status {status}"

    async def wait(self, seconds: float) -> None:
        """Until it has ended, or for so long."""
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._process.wait()

    async def close(self) -> None:
        """Makes sure that the process is gone, and takes its sockets away. Raises OSError where it does not go."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                # Ends a stopped process as well.
                self._process.kill()
            await self.wait(KILL_SECONDS)
            await self._reap()
        self._close_sockets()
        self._binding.remove()
        if self._process is not None and self._process.returncode is None:
            raise OSError(f"process {self.pid} did not end within {KILL_SECONDS:g} s of SIGKILL")

    async def _reap(self) -> None:
        """Waits for the ranks that the engine left behind, where they became children of this process.

        That is so where it is the first of a container: there no other process would, and they stayed as zombies.
        """
        with contextlib.suppress(ChildProcessError, TimeoutError):
            async with asyncio.timeout(REAP_SECONDS):
                for pid in self._ranks:
                    while os.waitpid(pid, os.WNOHANG) == (0, 0):
                        await asyncio.sleep(0.02)

    def _close_sockets(self) -> None:
        self._push.close(linger=0)
        self._pull.close(linger=0)
        self._context.term()
