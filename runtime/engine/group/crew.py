"""Ranks that this process has started: watched in a thread, ended together. Free of torch, as agents are."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable

import msgspec

from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.framed import frame, read_framed
from plimsoll.runtime.messages import EngineFailed, LoadProgress, RankBeat, RankReady

log = logging.getLogger(__name__)

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


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank of a group over several machines needs to meet the others."""

    epoch: str
    leader: str
    """Where the leader listens, as libzmq writes it."""
    steps: str
    """Where it announces steps."""
    address: str
    """IP address to listen on."""
    key_file: str


class RankHandover(msgspec.Struct, frozen=True, kw_only=True):
    """All a rank is given at its start, through its standard input. Descriptors are inherited."""

    config: EngineConfig
    rank: int
    size: int
    spins: int
    parent: int
    """Process id of the one that starts it."""
    log_level: int = logging.INFO
    """The least that the process logs: as much as the one that starts it."""
    segment: int | None
    """Descriptor of the group's memory; None where the group is on several machines."""
    seat: Seat | None
    words: int
    """Descriptor that it writes `FromRank` to."""


FromRank = LoadProgress | RankReady | RankBeat | EngineFailed


class RankProcess:
    """One rank. Its last words arrive in a thread of their own.

    Args:
        segment: the group's memory, a descriptor; None with `seat`.
        seat: its place in a group over several machines.
    """

    def __init__(
        self, config: EngineConfig, rank: int, size: int, spins: int, segment: int | None, seat: Seat | None = None
    ) -> None:  # fmt: skip
        """Raises OSError."""
        self.rank = rank
        self.progress: LoadProgress | None = None
        self.weights: LoadProgress | None = None
        """The last word on that phase."""
        self.ready: RankReady | None = None
        self.failed: str | None = None
        self.moved = time.monotonic()
        self.beats = 0
        """Signs of life that came through the pipe."""
        reading, writing = os.pipe()
        try:
            # -P: the working folder may hold anything, and must not provide modules.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "plimsoll.runtime.engine.worker.rank_process"],
                stdin=subprocess.PIPE,
                pass_fds=(writing,) if segment is None else (segment, writing),
            )
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        handover = RankHandover(
            config=config, rank=rank, size=size, spins=spins, parent=os.getpid(),
            log_level=logging.getLogger().level, segment=segment, seat=seat, words=writing,
        )  # fmt: skip
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
                if isinstance(message, RankBeat):
                    self.beats += 1
                    continue
                self.moved = time.monotonic()
                if isinstance(message, RankReady):
                    self.ready = message
                elif isinstance(message, EngineFailed):
                    self.failed = message.error
                else:
                    self.progress = message
                    if message.phase == "weights":
                        self.weights = message

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


class Crew:
    """Ranks that live and die together: where one ends or gives no sign of life, all are ended.

    Args:
        begin: starts a rank. Raises OSError.
        ranks: their numbers.
        beats: signs of life that a rank has given.
        ending: called before they are ended, in the thread that watches.

    Attributes:
        processes: those that were started.
        failure: why they are not whole any more, None while they are.
    """

    def __init__(
        self,
        begin: Callable[[int], RankProcess],
        ranks: Iterable[int],
        beats: Callable[[RankProcess], int] = lambda one: one.beats,
        ending: Callable[[], None] = lambda: None,
    ) -> None:
        self.processes: list[RankProcess] = []
        self.failure: str | None = None
        self._begin, self._numbers, self._beats, self._ending = begin, list(ranks), beats, ending
        self._closing = threading.Event()
        self._started = threading.Event()
        # The kernel ends a child with the thread that started it: this one lives as long as the ranks do.
        self._watcher = threading.Thread(target=self._watch, name="ranks", daemon=True)
        self._watcher.start()
        self._started.wait()

    @property
    def refused(self) -> bool:
        """Whether one has said itself why it cannot start."""
        return any(one.failed is not None for one in self.processes)

    @property
    def ready(self) -> list[RankReady]:
        """What those observed that have loaded."""
        return [one.ready for one in self.processes if one.ready is not None]

    def close(self) -> None:
        """Ends all of them. Safe to call twice."""
        self._closing.set()
        self._watcher.join()

    def _watch(self) -> None:
        try:
            for rank in self._numbers:
                self.processes.append(self._begin(rank))
        except OSError as error:
            self.failure = f"rank {self._numbers[len(self.processes)]} cannot be started: {error}"
        finally:
            self._started.set()
        silent = {one.rank: 0.0 for one in self.processes}
        beats = dict.fromkeys(silent, 0)
        before = time.monotonic()
        while self.failure is None and not self._closing.wait(LOOK_SECONDS):
            # Time in which this process was itself kept from running is not counted.
            passed, before = min(time.monotonic() - before, 2 * LOOK_SECONDS), time.monotonic()
            for one in self.processes:
                seen = self._beats(one)
                silent[one.rank] = 0.0 if seen != beats[one.rank] else silent[one.rank] + passed
                beats[one.rank] = seen
                self.failure = self.failure or _judged(one, silent[one.rank])
        if self.failure is not None and not self._closing.is_set():
            log.error("the ranks of this process end: %s", self.failure)
        self._ending()
        for one in self.processes:
            one.kill()
        for one in self.processes:
            one.wait()


def _judged(one: RankProcess, silent: float) -> str | None:
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
