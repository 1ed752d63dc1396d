"""How `quantize` and `eval` show where they are: a bar in a terminal, lines in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from plimsoll.api.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

    from plimsoll.api.job_progress import JobProgress

#: Seconds without a line in a log after which the next one comes.
SILENCE = 30.0


@contextmanager
def shown(screen: "Console") -> Iterator[Callable[["JobProgress"], None]]:
    """A bar in a terminal; elsewhere a line for each phase, for each layer, and every `SILENCE` seconds."""
    if not screen.is_terminal:
        yield Lines()
        return
    from rich.progress import BarColumn, Progress

    from plimsoll.cli.screen import column

    columns = (column("{task.description}"), BarColumn(), column("{task.percentage:>4.1f} %"),
               column("{task.fields[words]}"))  # fmt: skip
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task("Preparing", total=100.0, words="")

        def show(now: "JobProgress") -> None:
            bar.update(task, completed=now.percent, description=now.phase, words=words(now))

        yield show


class Lines:
    """A line on stderr whenever a layer or a phase is over, and after `SILENCE` seconds without one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: tuple[str, int] | None = None
        self._at = clock()

    def __call__(self, now: "JobProgress") -> None:
        here, clock = (now.phase, now.layer), self._clock()
        if now.phase == "Failed" or (here == self._last and clock - self._at < SILENCE):
            return
        self._last, self._at = here, clock
        print(printable(f"{now.phase.lower()}{words(now, ': ')}"), file=sys.stderr, flush=True)


def words(now: "JobProgress", before: str = "") -> str:
    """Layer or tokens, share, time left and the most memory taken, as far as they are known."""
    from plimsoll.api.quantity import format_bytes

    found = []
    if now.of and now.phase == "Quantizing":
        found.append(f"layer {now.layer} of {now.of}")
    if now.message:
        found.append(now.message)
    if now.phase not in ("Complete", "Failed"):
        found.append(f"{now.percent:.1f} %")
    if now.eta_seconds:
        found.append(f"{_clock(now.eta_seconds)} left")
    found.append(f"{_clock(now.seconds)} so far")
    if now.peak_memory:
        found.append(f"at most {format_bytes(now.peak_memory)}")
    return before + ", ".join(found)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
