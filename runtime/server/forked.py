"""Processes that work on what strangers send: limited in memory and processor time, and killed when they take too long.

They are forked from one process that does nothing else and was forked itself before the server had threads,
connections or keys. So a new one takes milliseconds, and shares the tokenizer's memory until it writes to it.
"""

import contextlib
import gc
import itertools
import mmap
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from plimsoll.runtime.machine.parent import die_with_parent

#: What runs in the process: (payload, arguments, note) to a result that pickles. `note` takes a number from 0 to 255
#: that says which step is next; the parent reads it when the process did not finish.
Call = Callable[[bytearray, Any, Callable[[int], None]], Any]

#: Number of a process, the bytes that it may allocate, and how nice it is; 0 bytes ends the process.
COMMAND = struct.Struct(">QQB")
#: Bytes of the pickled arguments and of the payload, and seconds of processor time that the job may take.
JOB = struct.Struct(">QQd")
#: Bytes of the pickled answer, its kind, and whether the process ends after it.
ANSWER = struct.Struct(">QB?")
RESULT, OUT_OF_MEMORY, FAULT = range(3)

#: A process whose memory has grown by more than this ends after its answer: the next one starts small.
GROWN_BYTES = 48 << 20


class Forker:
    """Forks processes that run `call`, and kills them. Needs neither threads nor an event loop.

    Attributes:
        pid: of the process that forks the others.
        socket: ends when that process does; not readable before.
    """

    def __init__(self, call: Call) -> None:
        self._steps = mmap.mmap(-1, mmap.PAGESIZE)
        self._numbers = itertools.count(1)
        self.socket, theirs = socket.socketpair()
        with warnings.catch_warnings():
            # Python 3.12 warns where threads run. The child starts no thread and takes none of their locks.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if not self.pid:
            try:
                _serve(theirs, self._steps, call)
            finally:
                os._exit(1)
        theirs.close()
        self.socket.setblocking(False)

    def fork(self, memory: int, nice: int) -> tuple[int, socket.socket]:
        """A new process that may allocate `memory` bytes: its number, and the socket for its jobs.

        `nice` is 0 to 19: how far it leaves the processor to others.

        Raises OSError where there is no process to fork it from, or no descriptor left.
        """
        number = next(self._numbers)
        ours, theirs = socket.socketpair()
        self._steps[number % len(self._steps)] = 0
        with theirs:
            try:
                socket.send_fds(self.socket, [COMMAND.pack(number, memory, nice)], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        ours.setblocking(False)
        return number, ours

    def step(self, number: int) -> int:
        """The last step that a process noted."""
        return self._steps[number % len(self._steps)]

    def kill(self, number: int) -> None:
        """Ask for the end of process `number`; does nothing if the forker has ended."""
        with contextlib.suppress(OSError):
            self.socket.send(COMMAND.pack(number, 0, 0))

    def close(self) -> None:
        """Ends all processes."""
        self.socket.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def _serve(control: socket.socket, steps: mmap.mmap, call: Call) -> NoReturn:
    """The process that forks the others, until its parent is gone."""
    _detach(control.fileno())
    control.setblocking(True)
    # A collection would write to pages that are shared with the parent, and could end objects of its threads.
    gc.disable()
    pid, living = os.getpid(), dict[int, int]()
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, COMMAND.size, 1)
        for number, child in list(living.items()):
            if os.waitpid(child, os.WNOHANG)[0]:
                del living[number]
        if not data:
            for child in living.values():
                os.kill(child, signal.SIGKILL)
            os._exit(0)
        number, memory, nice = COMMAND.unpack(data)
        if not descriptors:
            # Only processes that were not waited for are here, so the id is no other's.
            if number in living:
                os.kill(living[number], signal.SIGKILL)
            continue
        try:
            child = os.fork()
        except OSError:
            # The parent sees the socket end, as if the process had died.
            child = -1
        if child == 0:
            try:
                control.close()
                die_with_parent(pid)
                _limit(memory)
                os.nice(nice)
                _work(socket.socket(fileno=descriptors[0]), steps, number % len(steps), call)
            finally:
                os._exit(1)
        os.close(descriptors[0])
        if child > 0:
            living[number] = child


def _detach(kept: int) -> None:
    """Leaves behind the parent's terminal, signal handlers and descriptors: sockets, keys, what a log goes to."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    os.closerange(3, kept)
    os.closerange(kept + 1, min(os.sysconf("SC_OPEN_MAX"), 1 << 20))


def _limit(memory: int) -> None:
    """Bounds what this process allocates beyond what it was forked with. The bound is Linux's; elsewhere only time is.

    Should the container run out of memory all the same, the kernel ends this process first.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        held = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (held + memory, held + memory))


def _work(link: socket.socket, steps: mmap.mmap, place: int, call: Call) -> NoReturn:
    """Answers jobs one after the other until the socket ends."""
    gc.freeze()
    gc.enable()
    began, scale = _peak(), 1 if sys.platform == "darwin" else 1024

    def note(step: int) -> None:
        steps[place] = step

    while head := _read(link, JOB.size):
        described, size, seconds = JOB.unpack(head)
        kind, found = RESULT, b""
        try:
            arguments, payload = pickle.loads(_read(link, described)), _read(link, size)
            # Its signal ends this process, wherever it is: in C as well, where no handler of Python's would run.
            signal.setitimer(signal.ITIMER_PROF, seconds)
            found = pickle.dumps(call(payload, arguments, note), pickle.HIGHEST_PROTOCOL)
            del payload
        except MemoryError:
            kind = OUT_OF_MEMORY
        except Exception:
            kind, found = FAULT, traceback.format_exc().encode("utf-8", "replace")
        signal.setitimer(signal.ITIMER_PROF, 0)
        last = kind != RESULT or (_peak() - began) * scale > GROWN_BYTES
        link.sendall(ANSWER.pack(len(found), kind, last) + found)
        if last:
            break
    os._exit(0)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _read(link: socket.socket, size: int) -> bytearray:
    """Exactly `size` bytes; ends this process where the socket ends first."""
    data = bytearray(size)
    view = memoryview(data)
    while view:
        got = link.recv_into(view)
        if not got:
            os._exit(0)
        view = view[got:]
    return data
