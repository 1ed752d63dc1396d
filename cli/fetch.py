"""`plimsoll fetch SOURCE --into DIR`: the files that serving needs, whole or not at all."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import plimsoll
from plimsoll.api.errors import PlimsollError
from plimsoll.api.group import POD, ordinal_of
from plimsoll.api.printable import printable

if TYPE_CHECKING:
    from plimsoll.checkpoint.progress import Progress

#: Seconds between two lines where standard error is no terminal.
LINE_EVERY = 10.0


def fetch(
    source: Annotated[str, typer.Argument(help="hf://ORG/NAME@REVISION, s3://BUCKET/PREFIX or file://PATH.")],
    into: Annotated[Path, typer.Option(help="The folder; it is made if need be.", metavar="DIR")],
    revision: Annotated[
        str | None, typer.Option(help="Refuse anything but this one, as `plimsoll inspect` prints it.")
    ] = None,
    status_port: Annotated[
        int, typer.Option(help="Serve /status and /live on this port meanwhile; 0 serves none.", min=0, max=65535)
    ] = 0,
    report: Annotated[Path | None, typer.Option(help="A file for the reason of a failure.")] = None,
    leader_only: Annotated[
        bool, typer.Option("--leader-only", help="Fetch nothing in a pod of a group that is not its leader.")
    ] = False,
) -> None:
    """Download what serving needs of a checkpoint; resumes where the last attempt stopped, and never fetches twice."""
    if leader_only and ordinal_of(os.environ.get(POD, "")):
        typer.echo("This pod follows, and only the leader of its group needs these files")
        return

    from plimsoll.checkpoint import guard, trust
    from plimsoll.checkpoint.fetching import Fetcher

    fetcher = Fetcher(source, into, revision=revision)

    def leave(number: int, frame: object) -> None:
        # What has arrived is as safe as it will ever be; the first process of a container must leave by itself.
        fetcher.lock.release()
        os._exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    guard.install()
    try:
        trust.install()
        with _status_page(status_port, fetcher.progress), _shown(fetcher.progress):
            found = fetcher.run()
    except (PlimsollError, OSError, MemoryError) as error:
        _report(report, error)
        raise
    except Exception as error:
        # A mistake of ours: its text might hold anything.
        failure = PlimsollError(f"cannot be fetched ({type(error).__name__})", field=source, fix="Report this")
        _report(report, failure)
        raise failure from error
    words = f"{into} holds {found.source} at {found.revision}, whole: {found.bytes} bytes, {found.digest}"
    typer.echo(printable(words))


def _report(path: Path | None, error: BaseException) -> None:
    if path is not None:
        with contextlib.suppress(OSError):
            path.write_text(printable(str(error))[:4000])


def pages(progress: "Progress") -> dict[str, Callable[[], tuple[int, bytes]]]:
    """What the operator reads while a pod's files are still on their way, in the form of a model pod's own pages."""

    def status() -> tuple[int, bytes]:
        found = {"phase": "downloading", "startup": {"download": progress.status()}, "version": plimsoll.__version__}
        return 200, json.dumps(found).encode()

    return {"/status": status, "/ready": lambda: (503, b'{"ready":false,"phase":"downloading"}')}


@contextlib.contextmanager
def _status_page(port: int, progress: "Progress") -> Iterator[None]:
    if not port:
        yield
        return
    from plimsoll.cli.status_page import serve_status

    server = serve_status(port, pages(progress))
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def _shown(progress: "Progress") -> Iterator[None]:
    """A bar on a terminal, a line now and then elsewhere; both on stderr."""
    stop = threading.Event()
    target = _draw_bar if sys.stderr.isatty() else _write_lines
    thread = threading.Thread(target=target, args=(progress, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(2)


def _draw_bar(progress: "Progress", stop: threading.Event) -> None:
    from plimsoll.cli import screen

    with screen.transfer_bar(transient=True) as bar:
        while not stop.wait(0.2):
            if progress.total is not None:
                task = bar.task_ids[0] if bar.task_ids else bar.add_task("")
                what = "Another process fetches" if progress.waiting else "Fetching"
                bar.update(task, description=what, completed=progress.bytes, total=progress.total)


def _write_lines(progress: "Progress", stop: threading.Event) -> None:
    last = time.monotonic()
    while not stop.wait(0.2):
        if time.monotonic() - last >= LINE_EVERY:
            last = time.monotonic()
            typer.echo(printable(line(progress)), err=True)


def line(progress: "Progress") -> str:
    """How far it is, on one line."""
    from plimsoll.api.quantity import format_bytes

    status = progress.status()
    if status["total"] is None:
        return "waiting for another process" if progress.waiting else "asking the source what it holds"
    text = f"{format_bytes(status['bytes'])} of {format_bytes(status['total'])}"
    if progress.waiting:
        return f"another process fetches: {text}"
    if status["eta"] is not None:
        text += f", {format_bytes(int(progress.speed()))}/s, {round(status['eta'])} s left"
    return f"fetching: {text}"
