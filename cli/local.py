"""Services on this machine, as `serve`, `up` and `chat` run them: download, load, say where, wait, drain."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from plimsoll.api.cache_loss import CACHES_BY_BYTES
from plimsoll.api.quantity import format_bytes
from plimsoll.cli.screen import column
from plimsoll.cli.screen import console as console

if TYPE_CHECKING:
    from plimsoll.runtime.messages import EngineReady
    from plimsoll.runtime.server.service import Service

PHASES = {"weights": "Loading weights", "cache": "Allocating the KV cache", "warmup": "Warming up"}


def fetch(source: str, screen: Console, field: str) -> Path:
    """The checkpoint's path on this machine, downloaded first (with a bar) for `hf://`.

    Args:
        field: what the user calls it.

    Raises:
        CheckpointError: in plain words, when it is not there or cannot be had.
    """
    from plimsoll.checkpoint.sources import named, resolve

    with bars(screen) as progress, named(field):
        task: Any = None

        def advance(done: int, total: int) -> None:
            nonlocal task
            if task is None:
                task = progress.add_task(f"Downloading {source}", total=total)
            progress.update(task, completed=done, total=total)

        return resolve(source, progress=advance)


def own_name(source: str, path: Path) -> str:
    """Default name of a model for clients: `org/name` on a hub, else the file's or folder's name."""
    if path.is_file():
        return path.stem
    return source.removeprefix("hf://").partition("@")[0] if source.startswith("hf://") else path.resolve().name


def bars(screen: Console) -> Progress:
    """A progress display for downloads and loading."""
    return Progress(
        column("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
        console=screen,
        transient=True,
        # Into a file a bar would only leave an empty line.
        disable=not screen.is_terminal,
    )


class Stopping:
    """SIGTERM and Ctrl-C begin to drain, once; a second Ctrl-C interrupts at once."""

    def __init__(self, services: Sequence["Service"], screen: Console) -> None:
        self.services, self.screen = services, screen
        self.asked = threading.Event()

    @contextlib.contextmanager
    def signals(self, *numbers: signal.Signals) -> Iterator[None]:
        """Handle these signals inside the block, and restore their handlers after it."""
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked.set()
        self.drain()

    def drain(self) -> None:
        """Ask every service to finish its requests and stop."""
        for service in self.services:
            service.stop()


def run(services: Sequence["Service"], screen: Console, then: Callable[[], None] | None = None) -> None:
    """Starts every service, waits until all are ready, does `then` (or waits for a signal), and drains.

    Blocks. Called in the main thread, where signals arrive.

    Raises:
        PlimsollError: an engine could not start, or died too often; the others are drained first.
    """
    stopping = Stopping(services, screen)
    numbers = (signal.SIGTERM, signal.SIGINT)
    try:
        with stopping.signals(*numbers):
            for service in services:
                service.start()
            wait_ready(services, screen)
            failed = any(service.error for service in services)
            if not failed and not stopping.asked.is_set():
                for service in services:
                    announce(service, screen)
                if then is None:
                    _wait(services)
        if then is not None and not failed and not stopping.asked.is_set():
            # Ctrl-C belongs to the conversation; SIGTERM still drains.
            with stopping.signals(signal.SIGTERM):
                then()
    finally:
        stopping.drain()
        with stopping.signals(*numbers):
            for service in services:
                service.wait(1.0)
            if any(service.serving.gate.inside for service in services):
                screen.print("Draining: waiting for running requests (Ctrl-C stops them)")
            errors = []
            for service in services:
                try:
                    service.join()
                except Exception as error:
                    errors.append(error)
    if errors:
        raise errors[0]


def _wait(services: Sequence["Service"]) -> None:
    """Wait until a service ends for any reason. Waits are short, so that signal handlers run."""
    while all(service.running for service in services):
        for service in services:
            service.wait(1.0)


def wait_ready(services: Sequence["Service"], screen: Console) -> None:
    """Shows each load as it goes, until every service is ready or one has failed."""
    with bars(screen) as progress:
        tasks: dict[tuple[str, str], Any] = {}
        while not all(service.settled.is_set() for service in services) and not any(s.error for s in services):
            for service in services:
                seen = service.progress
                if seen is None:
                    continue
                name = service.config.served_name
                key = (name, seen.phase)
                if key not in tasks:
                    words = f"{PHASES.get(seen.phase, seen.phase)}{_on_ranks(len(seen.ranks))} ({name})"
                    tasks[key] = progress.add_task(words, total=None)
                progress.update(tasks[key], completed=seen.done_bytes, total=seen.total_bytes or None)
            next(s for s in services if not s.settled.is_set()).settled.wait(0.1)


def announce(service: "Service", screen: Console) -> None:
    """Where the endpoint is, and what was predicted beside what is measured."""
    info = service.info
    assert info is not None
    name, url = service.config.served_name, service.url
    screen.print(Text.assemble(("Ready", "bold green"), f" {name} at ", (url, "bold")))
    screen.print(memory_table(info.predicted, info.observed), highlight=False)
    for rank in info.ranks[1:]:
        parts = f"weights {format_bytes(rank.weights)} · KV cache {format_bytes(rank.kv_cache)}"
        screen.print(f"rank {rank.rank}: {parts} · in use {format_bytes(rank.resident)}", style="dim", highlight=False)
    tokens = info.num_blocks * info.block_size
    held = f" at {info.cache_dtype}" if info.cache_dtype in CACHES_BY_BYTES else ""
    took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in info.startup.items())
    threads = f"{info.threads} thread{'' if info.threads == 1 else 's'}{' each' if info.ranks else ''}"
    screen.print(
        f"context {info.model_len} tokens · cache {tokens} tokens{held} · {info.precision} · "
        f"{info.kernels} kernels"
        f"{_on_ranks(len(info.ranks))} on {threads} · {took}",
        style="dim",
        highlight=False,
    )
    screen.print(_determinism(info), style="dim", highlight=False)


def _determinism(info: "EngineReady") -> str:
    test = info.determinism
    if test.deterministic:
        return f"deterministic · self-test {test.digest[: len('sha256:') + 12]}"
    return f"not deterministic: {test.reason}"


def _on_ranks(size: int) -> str:
    return f" of {size} ranks" if size > 1 else ""


def memory_table(predicted: dict[str, int], observed: dict[str, int]) -> Table:
    """A table of predicted and measured bytes by term."""
    table = Table(box=None, pad_edge=False)
    table.add_column("memory")
    table.add_column("predicted", justify="right")
    table.add_column("measured", justify="right")
    used = sum(predicted.get(term, 0) for term in ("context", "weights", "draft", "workspace", "kvCache", "hostCache"))
    rows = (
        ("weights", predicted.get("weights"), observed.get("weights")),
        ("draft model", predicted.get("draft"), observed.get("draft")),
        ("KV cache", predicted.get("kvCache"), observed.get("kvCache")),
        ("host tier", predicted.get("hostCache"), observed.get("hostCache")),
        ("workspace", predicted.get("workspace"), None),
        ("context", predicted.get("context"), None),
        ("in use", used, observed.get("resident")),
        ("line", predicted.get("total"), None),
    )
    for name, expected, found in rows:
        if expected is not None:
            table.add_row(name, format_bytes(expected), "" if found is None else format_bytes(found))
    return table
