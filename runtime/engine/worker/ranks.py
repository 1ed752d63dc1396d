"""The other ranks of a tensor-parallel group on this machine, as rank 0 sees them: started, watched, ended.

Each is a process (`rank_process.py`) that loads its share and then follows: it computes each step that rank 0
announces. Rank 0 is this process. They live and die together: where one ends or gives no sign of life, all end.
"""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from plimsoll.api.errors import PlimsollError
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.kernels.build import NativeUnavailableError
from plimsoll.runtime.kernels.group_error import GroupError
from plimsoll.runtime.kernels.native_group import SPINS, SharedGroup, make_segment
from plimsoll.runtime.machine.threads import cpu_limit
from plimsoll.runtime.messages import EngineFailed, LoadProgress, RankReady

log = logging.getLogger(__name__)

LENGTH_BYTES = 4
"""Messages are preceded by their length, big-endian."""

LOOK_SECONDS = 0.1
"""Between two looks at the ranks."""

SILENT_SECONDS = 3.0
"""A rank that serves gives a sign of life four times a second; after so long without, it hangs."""

LOADING_SILENT_SECONDS = 120.0
"""The same while it loads: importing torch from a slow disk holds Python's lock."""

LOADING_STILL_SECONDS = 600.0
"""A rank that loads may report no progress for so long."""

END_SECONDS = 5.0
"""A process that SIGKILL does not end in so long is stuck in the kernel."""


class RankHandover(msgspec.Struct, frozen=True, kw_only=True):
    """All a rank is given at its start, through its standard input. Descriptors are inherited."""

    config: EngineConfig
    rank: int
    size: int
    spins: int
    parent: int
    """Process id of rank 0."""
    segment: int
    """Descriptor of the group's memory."""
    words: int
    """Descriptor that it writes `FromRank` to."""


FromRank = LoadProgress | RankReady | EngineFailed


class RankProcess:
    """One of the others. Its last words arrive in a thread of their own."""

    def __init__(self, config: EngineConfig, rank: int, size: int, spins: int, segment: int) -> None:
        """Raises OSError."""
        self.rank = rank
        self.progress: LoadProgress | None = None
        self.ready: RankReady | None = None
        self.failed: str | None = None
        self.moved = time.monotonic()
        reading, writing = os.pipe()
        try:
            # -P: the working folder may hold anything, and must not provide modules.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "plimsoll.runtime.engine.worker.rank_process"],
                stdin=subprocess.PIPE,
                pass_fds=(segment, writing),
            )
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        handover = RankHandover(
            config=config, rank=rank, size=size, spins=spins, parent=os.getpid(), segment=segment, words=writing
        )
        assert self.process.stdin is not None
        try:
            # The pipe stays open: its end, too, is how the process learns that we are gone.
            self.process.stdin.write(frame(handover))
            self.process.stdin.flush()
        except BrokenPipeError:
            # It died before it read anything: its end is noticed like any other.
            pass
        self._listener = threading.Thread(target=self._listen, args=(reading,), name=f"rank-{rank}", daemon=True)
        self._listener.start()

    def _listen(self, descriptor: int) -> None:
        with os.fdopen(descriptor, "rb") as stream:
            while (message := read_framed(stream, FromRank)) is not None:
                self.moved = time.monotonic()
                if isinstance(message, RankReady):
                    self.ready = message
                elif isinstance(message, EngineFailed):
                    self.failed = message.error
                else:
                    self.progress = message

    def ended(self) -> str | None:
        """How it ended, in its own words where it had any; None while it runs."""
        status = self.process.poll()
        if status is None:
            return None
        self._listener.join(1.0)
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        if self.failed is not None:
            return self.failed
        return how if self.progress is None or self.ready else f"{how} while it loaded {self.progress.phase}"

    def kill(self) -> None:
        """Ends it, stopped or not."""
        self.process.kill()

    def wait(self) -> None:
        """Until it is gone. Raises subprocess.TimeoutExpired for one stuck in the kernel."""
        self.process.wait(END_SECONDS)
        if self.process.stdin is not None:
            self.process.stdin.close()


class Ranks:
    """The group of this engine. `close` ends it; so does the end of this process, however it comes.

    Attributes:
        group: rank 0's end of the collectives.
        failure: why the group is not whole any more, None while it is.
    """

    def __init__(self, config: EngineConfig, size: int, threads: int) -> None:
        """Starts ranks 1 to `size` - 1 with `config`, `threads` each.

        Raises PlimsollError where this machine cannot run ranks, OSError where memory or a process cannot be had.
        """
        self.size = size
        self.failure: str | None = None
        spins = SPINS if size * threads <= cpu_limit() else 0
        try:
            self._segment = make_segment(size)
        except NativeUnavailableError as error:
            raise PlimsollError(
                f"ranks share memory through the native kernels, and {error}", field="tensor", value=size, fix="Use 1"
            ) from error
        self.group = SharedGroup(self._segment, 0, size, spins)
        self._closing = threading.Event()
        self._started = threading.Event()
        self._ended = False
        self._processes: list[RankProcess] = []
        self._begin: Callable[[int], RankProcess] = lambda rank: RankProcess(config, rank, size, spins, self._segment)
        # The kernel ends a child with the thread that started it: this one lives as long as the group.
        self._watcher = threading.Thread(target=self._watch, name="ranks", daemon=True)
        self._watcher.start()
        self._started.wait()

    def check(self) -> None:
        """Raises GroupError where the group is not whole any more."""
        if self.failure is not None:
            raise GroupError(self.failure)

    def wait_ready(self) -> list[RankReady]:
        """Until every rank has loaded; what each observed. Raises PlimsollError or GroupError in the words of the one
        that has not."""
        while True:
            if self.failure is not None:
                refused = [one for one in self._processes if one.failed is not None]
                if refused:
                    raise PlimsollError(self.failure, field="tensor", value=self.size)
                raise GroupError(self.failure)
            found = [one.ready for one in self._processes if one.ready is not None]
            if len(found) == self.size - 1:
                return found
            time.sleep(0.01)

    def close(self) -> None:
        """Ends all of them. Safe to call twice."""
        self._closing.set()
        self._watcher.join()

    def _watch(self) -> None:
        try:
            for rank in range(1, self.size):
                self._processes.append(self._begin(rank))
        except OSError as error:
            self.failure = f"rank {len(self._processes) + 1} cannot be started: {error}"
        finally:
            self._started.set()
        silent = {one.rank: 0.0 for one in self._processes}
        beats = dict.fromkeys(silent, 0)
        before = time.monotonic()
        while self.failure is None and not self._closing.wait(LOOK_SECONDS):
            # Time in which this process was itself kept from running is not counted.
            passed, before = min(time.monotonic() - before, 2 * LOOK_SECONDS), time.monotonic()
            for one in self._processes:
                seen = self.group.beats(one.rank)
                silent[one.rank] = 0.0 if seen != beats[one.rank] else silent[one.rank] + passed
                beats[one.rank] = seen
                self.failure = self.failure or self._judged(one, silent[one.rank])
        if self.failure is not None and not self._closing.is_set():
            log.error("the group of %d ranks ends: %s", self.size, self.failure)
        self.group.end()
        for one in self._processes:
            one.kill()
        for one in self._processes:
            one.wait()
        os.close(self._segment)

    def _judged(self, one: RankProcess, silent: float) -> str | None:
        ended = one.ended()
        if ended is not None:
            return f"rank {one.rank}: {ended}"
        bound = LOADING_SILENT_SECONDS if one.ready is None else SILENT_SECONDS
        if silent > bound:
            return f"rank {one.rank} gave no sign of life for {silent:.0f} s"
        if one.ready is None and time.monotonic() - one.moved > LOADING_STILL_SECONDS:
            phase = "starting" if one.progress is None else f"loading {one.progress.phase}"
            return f"rank {one.rank} is {phase} and has not moved for {LOADING_STILL_SECONDS:.0f} s"
        return None


def frame(message: msgspec.Struct) -> bytes:
    """A message as it goes through a pipe: its length, then its bytes."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def read_framed(stream: Any, kind: Any) -> Any:
    """The next message of a binary stream, None at its end. Raises msgspec.DecodeError."""
    size = stream.read(LENGTH_BYTES)
    body = stream.read(int.from_bytes(size, "big")) if len(size) == LENGTH_BYTES else b""
    if not body or len(body) < int.from_bytes(size, "big"):
        return None
    return msgspec.msgpack.decode(body, type=kind)
