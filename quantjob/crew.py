"""The processes that share the searches of a layer. Their number decides no bit of the output.

Two threads of one process wait for each other in the interpreter while codes are chosen, two processes do not: what
that gains is in docs/quantization.md. Each device has a process of its own too.
Reading, passes over the text and writing stay with the process that runs the job.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from plimsoll.quantjob.failures import WorkersLostError
from plimsoll.quantjob.link import Link
from plimsoll.quantjob.workers import Workers

#: A worker process that has used no processor time for so long while it is waited for hangs.
STILL_SECONDS = 60.0

Unit = TypeVar("Unit", contravariant=True)
Result = TypeVar("Result")


class Task(Protocol[Unit, Result]):
    """What pickles, and computes the results of units, each of that unit alone."""

    def __call__(self, units: Sequence[Unit], workers: Workers, /) -> list[Result]: ...


class Crew:
    """On a CPU this process and `size` - 1 others; on other devices one process for each, and this one only hands out.

    They start with the first share. `rest` ends them until there is another one; the end of this process, however it
    comes, does so for good. A process that ends or hangs is given up: the rest computes its share, and the job goes on.

    Attributes:
        size: processes that compute.
        kind: of what they compute on, `cpu` or `cuda`.
        peak_bytes: the most that the other processes were resident with, together.
    """

    def __init__(
        self, size: int, workers: Workers, say: Callable[[str], None] = lambda note: None, devices: Sequence[str] = ()
    ) -> None:
        """Args:
        workers: their threads are divided equally.
        say: called with what a person should know.
        devices: of the processes, as torch calls them; for none this process computes too, and all on the CPU.
        """
        self._own = workers if size == 1 else Workers(max(1, workers.count // size))
        self._here = not devices
        self._waiting = list(enumerate(devices, 1)) or [(number, "cpu") for number in range(2, size + 1)]
        self.kind = torch.device(self._waiting[0][1]).type if self._waiting else "cpu"
        self._members: list[Member] = []
        self._say = say
        self.peak_bytes = 0

    @property
    def size(self) -> int:
        return self._here + len(self._members) + len(self._waiting)

    @property
    def threads(self) -> int:
        """Units computed at once, in all processes."""
        return self._own.count * self.size

    def share(self, task: Task[Unit, Result], units: Sequence[Unit]) -> list[Result]:
        """The results of `units`, in their order. Raises WorkersLostError where no process is left."""
        self._start()
        results: dict[int, Any] = {}
        left = list(range(len(units)))
        while left:
            left = self._spread(task, units, left, results)
        self.peak_bytes = max(self.peak_bytes, sum(member.peak_bytes for member in self._members))
        return [results[index] for index in range(len(units))]

    def rest(self) -> None:
        """End the others, and give back their memory."""
        self._waiting += [(member.number, member.device) for member in self._members]
        for member in self._members:
            member.kill()
        self._members = []

    def _start(self) -> None:
        for number, device in self._waiting:
            try:
                self._members.append(Member(number, self._own.count, device))
            except OSError as error:
                self._say(f"worker {number} cannot be started: {error.strerror}")
        self._waiting = []

    def _spread(
        self, task: Task[Unit, Result], units: Sequence[Unit], places: Sequence[int], results: dict[int, Any]
    ) -> list[int]:
        """Compute the units of `places`; returns those of processes that were lost."""
        if not self.size:
            raise WorkersLostError(
                "all workers have ended", field="--workers", fix="Run it again: it goes on at the layer it had reached"
            )
        sizes = [one.numel() if isinstance(one, Tensor) else 1 for one in (units[place] for place in places)]
        parts = [[places[index] for index in part] for part in spread(sizes, self.size)]
        mine = parts.pop(0) if self._here else []
        asked = [
            (member, part, member.ask(task, [units[place] for place in part]))
            for member, part in zip(list(self._members), parts, strict=True)
            if part
        ]
        if mine:
            results.update(zip(mine, task([units[place] for place in mine], self._own), strict=True))
        lost: list[int] = []
        for member, part, sent in asked:
            answer = member.answer() if sent else None
            if answer is None:
                self._give_up(member)
                lost += part
            else:
                results.update(zip(part, answer, strict=True))
        return lost

    def _give_up(self, member: "Member") -> None:
        how = member.ended()
        self._members.remove(member)
        self._say(f"worker {member.number} {how}: {self.size} left, which compute its share")


class Member:
    """One of the others."""

    def __init__(self, number: int, threads: int, device: str = "cpu") -> None:
        """Raises OSError."""
        self.number, self.device = number, device
        self.peak_bytes = 0
        self._seen, self._moved = -1, time.monotonic()
        self._hung = False
        ours, theirs = socket.socketpair()
        with theirs:
            # -P: the working folder may hold anything, and must not provide modules. A session of its own: Ctrl-C in a
            # terminal is for this process to handle.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "plimsoll.quantjob.member", str(theirs.fileno()), str(os.getpid()),
                 str(threads), device],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )  # fmt: skip
        # Results come back to where layers are written from.
        self._link = Link(ours, torch.device("cpu"), self._look)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def ask(self, task: Task[Any, Any], units: Sequence[Any]) -> bool:
        """Whether the task could be given to it."""
        self._moved = time.monotonic()
        try:
            self._link.send((task, units))
        except OSError:
            return False
        return True

    def answer(self) -> list[Any] | None:
        """The results of what was asked; None where it ended or hangs."""
        self._moved = time.monotonic()
        try:
            found, self.peak_bytes = self._link.receive()
        except (OSError, EOFError):
            return None
        return list(found)

    def ended(self) -> str:
        """Makes sure that it is gone; returns how it ended."""
        if not self._hung:
            # It is about to be reaped.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
        status = self._process.poll()
        self.kill()
        if status is None:
            return f"used no processor time for {STILL_SECONDS:.0f} s"
        return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"

    def kill(self) -> None:
        """Ends it, stopped or not."""
        self._link.close()
        self._process.kill()
        self._process.wait()

    def _look(self) -> None:
        """Raises TimeoutError where it hangs."""
        used, now = _processor_ticks(self._process.pid), time.monotonic()
        if used != self._seen or used < 0:
            self._seen, self._moved = used, now
        elif now - self._moved > STILL_SECONDS:
            self._hung = True
            raise ConnectionError("it hangs")


def _processor_ticks(process: int) -> int:
    """Processor time that a process has used; -1 where the system does not say."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    return int(fields[11]) + int(fields[12])


def spread(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Places of `sizes` in `count` parts about as large as each other, each in order: the largest first, to the part
    that has least."""
    parts: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        least = loads.index(min(loads))
        parts[least].append(place)
        loads[least] += sizes[place]
    return [sorted(part) for part in parts]
