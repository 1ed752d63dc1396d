"""Jobs for forked processes: short ones and long ones apart, each one bounded in processor time and memory.

Time on the clock says little on a busy machine: there a job that takes 50 ms of a processor may last for seconds.
"""

import asyncio
import contextlib
import heapq
import itertools
import pickle
from collections.abc import AsyncIterator
from typing import Any, Literal

from plimsoll.runtime.server.forked import ANSWER, FAULT, JOB, OUT_OF_MEMORY, Forker

#: Bytes of a payload up to which a job may be a short one, and the seconds of a processor that a short job may take.
#: One that takes longer starts again among the long ones.
SHORT_BYTES, SHORT_SECONDS = 64 * 1024, 0.3
#: Bytes that a process may allocate for a short job.
SHORT_MEMORY = 48 << 20
#: On the clock, a job may take so many times its seconds of a processor: a long one beside a busy engine takes four.
BUSY = 10

#: A long job leaves the processor to the engine and to answers that run.
LONG_NICE = 5
#: Bytes of an answer that are read at once.
READ_BYTES = 256 * 1024

Reason = Literal["time", "memory", "end", "busy"]


class UnfinishedError(Exception):
    """A job took too long or too much memory.

    Attributes:
        reason: time, memory, busy where the machine gave the job too little of a processor, or end where the process
            ended without saying why.
        step: what the job last noted.
        seconds: of a processor that it had.
    """

    def __init__(self, reason: Reason, step: int, seconds: float) -> None:
        super().__init__(reason)
        self.reason, self.step, self.seconds = reason, step, seconds


class FaultError(Exception):
    """A job raised what it should not; the message is its traceback."""


class _Worker:
    """One forked process as the event loop sees it."""

    def __init__(self, forker: Forker, memory: int, nice: int) -> None:
        self._forker = forker
        self._number, self._link = forker.fork(memory, nice)
        self.memory = memory
        self.fresh = True
        self.last = False

    @property
    def step(self) -> int:
        return self._forker.step(self._number)

    async def ask(self, payload: bytes | bytearray, arguments: bytes, seconds: float) -> tuple[int, bytearray]:
        """Kind and bytes of the answer, in `seconds` of a processor. Raises OSError where the process ends first."""
        loop = asyncio.get_running_loop()
        head = JOB.pack(len(arguments), len(payload), seconds) + arguments
        if len(payload) <= SHORT_BYTES:
            await loop.sock_sendall(self._link, head + payload)
        else:
            await loop.sock_sendall(self._link, head)
            await loop.sock_sendall(self._link, payload)
        # Small answers come at once: each wait costs more than preparing a short text does.
        data = bytearray(await loop.sock_recv(self._link, READ_BYTES))
        while len(data) < ANSWER.size or len(data) < ANSWER.size + ANSWER.unpack_from(data)[0]:
            more = await loop.sock_recv(self._link, READ_BYTES)
            if not more:
                raise ConnectionResetError("the process ended")
            data += more
        _, kind, self.last = ANSWER.unpack_from(data)
        self.fresh = False
        return kind, data[ANSWER.size :]

    def kill(self) -> None:
        self._forker.kill(self._number)
        self.close()

    def close(self) -> None:
        """An idle process ends when its socket does."""
        self._link.close()


class _Turn:
    """Held by one job at a time. Next is the one that would end first, had each begun when it came.

    So a small job waits for no crowd of large ones, and a large one for small ones no longer than it may take itself.
    """

    def __init__(self) -> None:
        self._held = False
        self._numbers = itertools.count()
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []

    @contextlib.asynccontextmanager
    async def take(self, seconds: float) -> AsyncIterator[None]:
        """`seconds` is the most that the job may take."""
        if self._held:
            loop = asyncio.get_running_loop()
            mine = loop.create_future()
            heapq.heappush(self._waiting, (loop.time() + seconds, next(self._numbers), mine))
            try:
                await mine
            except asyncio.CancelledError:
                if not mine.cancelled():
                    self._pass_on()
                raise
        self._held = True
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            _, _, first = heapq.heappop(self._waiting)
            if not first.done():
                first.set_result(None)
                return
        self._held = False


class _Lane:
    """One process, and jobs that take turns. `patience` is seconds on the clock, which no job may pass."""

    def __init__(self, forker: Forker, nice: int, patience: float) -> None:
        self._forker, self._nice, self._patience = forker, nice, patience
        self._turn = _Turn()
        self._worker: _Worker | None = None

    async def run(self, payload: bytes | bytearray, arguments: bytes, seconds: float, memory: int) -> Any:
        """The job's result. Raises UnfinishedError, FaultError; OSError where no process can be forked."""
        async with self._turn.take(seconds):
            worker, self._worker = self._worker, None
            if worker is not None and worker.memory != memory:
                worker.close()
                worker = None
            worker = worker or _Worker(self._forker, memory, self._nice)
            try:
                return await self._ask(worker, payload, arguments, seconds)
            except UnfinishedError as error:
                # The kernel may have ended an idle process because memory ran out: that was no fault of this job.
                if error.reason != "end" or worker.fresh:
                    raise
            return await self._ask(_Worker(self._forker, memory, self._nice), payload, arguments, seconds)

    async def _ask(self, worker: _Worker, payload: bytes | bytearray, arguments: bytes, seconds: float) -> Any:
        kept, clock = False, asyncio.get_running_loop().time
        began = clock()
        try:
            async with asyncio.timeout(min(self._patience, BUSY * seconds)):
                kind, found = await worker.ask(payload, arguments, seconds)
            if kind == OUT_OF_MEMORY:
                raise UnfinishedError("memory", worker.step, seconds)
            if kind == FAULT:
                raise FaultError(found.decode())
            kept = not worker.last
            return pickle.loads(found)
        except TimeoutError:
            raise UnfinishedError("busy", worker.step, seconds) from None
        except OSError:
            # A process that has used up its time ends without a word. The kernel counts in ticks.
            reason: Reason = "time" if clock() - began >= 0.9 * seconds else "end"
            raise UnfinishedError(reason, worker.step, seconds) from None
        finally:
            if kept:
                self._worker = worker
            else:
                worker.kill()

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None


class Lanes:
    """Two processes: a long job never holds up a short one.

    Args:
        seconds: the most of a processor's time that one job may take.
        patience: the most that it may take on the clock.
    """

    def __init__(self, forker: Forker, seconds: float, patience: float) -> None:
        self._forker, self._seconds = forker, seconds
        self._short, self._long = _Lane(forker, 0, patience), _Lane(forker, LONG_NICE, patience)

    async def run(self, payload: bytes | bytearray, arguments: Any, memory: int) -> Any:
        """The result of one job.

        Args:
            memory: bytes that a long job may allocate.

        Raises:
            UnfinishedError: it took too long or too much memory, or its process ended.
            FaultError: it raised something else.
            OSError: no process can be forked.
        """
        described = pickle.dumps(arguments)
        if len(payload) <= SHORT_BYTES:
            try:
                return await self._short.run(payload, described, min(SHORT_SECONDS, self._seconds), SHORT_MEMORY)
            except UnfinishedError:
                pass
        return await self._long.run(payload, described, self._limit(len(payload)), memory)

    def _limit(self, size: int) -> float:
        """Seconds of a processor for a payload of `size` bytes: a small one that takes long is hostile."""
        return min(self._seconds, 3 + size / (128 * 1024))

    async def lost(self) -> None:
        """Waits until no process can be forked any more."""
        await asyncio.get_running_loop().sock_recv(self._forker.socket, 1)

    def close(self) -> None:
        self._short.close()
        self._long.close()
        self._forker.close()
