"""`plimsoll quantize`: a checkpoint as a 4-bit or 8-bit one, measured against what it was made of."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from plimsoll.api.errors import PlimsollError

if TYPE_CHECKING:
    from rich.console import Console

    from plimsoll.api.job_progress import JobProgress
    from plimsoll.quantjob.job import JobOptions, Outcome
    from plimsoll.quantjob.progress import Tracker

#: Exit status when the output is there and lost more than was allowed.
GATE_FAILED = 3
#: Exit status of what may work when it is tried again.
TRY_AGAIN = 75
#: What a process that was told to stop gets to unwind in.
LEAVING_SECONDS = 10.0


def quantize(
    source: Annotated[str, typer.Argument(help="The checkpoint: a folder, a .gguf file, hf://ORG/NAME.")],
    work_dir: Annotated[Path, typer.Option(help="The folder to write. A run that was stopped goes on here.")],
    method: Annotated[str, typer.Option(help="awq, rtn (round to nearest), or int8 (8 bits a weight).")] = "awq",
    w_bits: Annotated[int | None, typer.Option(help="Bits of a weight. Default: 4; 8 for int8.")] = None,
    w_group_size: Annotated[
        int | None, typer.Option(help="Columns that share a scale: 32, 64 or 128. Default: 128.")
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="awq or compressed-tensors. Default: awq; int8 has the other one.")
    ] = None,
    calib_dataset: Annotated[
        str, typer.Option(help="Text to look at: self, a file or folder, hf://datasets/ORG/NAME/CONFIG/SPLIT.")
    ] = "self",
    calib_samples: Annotated[int, typer.Option(min=1, help="Windows of it.")] = 128,
    calib_seqlen: Annotated[int, typer.Option(min=2, help="Tokens of a window.")] = 2048,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Windows computed at once. Default: what --memory holds.")
    ] = None,
    search_scale: Annotated[bool, typer.Option(help="awq: look for scales of input channels.")] = True,
    clip: Annotated[bool, typer.Option(help="awq: look for narrower ranges.")] = True,
    compensate: Annotated[
        bool, typer.Option(help="awq: let each column make up for the rounding of those before it.")
    ] = True,
    eval_dataset: Annotated[
        str | None, typer.Option(help="Held-out text. Default: other text of --calib-dataset.")
    ] = None,
    eval_samples: Annotated[int, typer.Option(min=0, help="Windows of it; 0 measures nothing.")] = 16,
    max_perplexity_increase: Annotated[str | None, typer.Option(help="Exit 3 when it rose by more, as 2%.")] = None,
    max_kl_divergence: Annotated[str | None, typer.Option(help="Exit 3 when the mean is more, nats a token.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Most that the process may take, as 8Gi. Default: what there is.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: one for each processor.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of text, and of sampling it.")] = 0,
    status_port: Annotated[int | None, typer.Option(help="Serve /status, /live and /ready there meanwhile.")] = None,
) -> None:
    """Quantise a checkpoint, measure what that cost, and refuse the result when it cost too much.

    Exits 0 when it is done, 3 when it is past a limit, 1 when it cannot be done, 75 when another run is at work here.
    Stopped by a signal or killed, it goes on where it was when it is run again.
    """
    from plimsoll.checkpoint import guard, trust
    from plimsoll.checkpoint.contents import ENVIRONMENT, refuse_changed
    from plimsoll.cli import local
    from plimsoll.cli.status_page import serve_status
    from plimsoll.quantjob.failures import BusyError, reason_of
    from plimsoll.quantjob.job import QuantizeJob
    from plimsoll.quantjob.progress import Tracker

    guard.install()
    signal.signal(signal.SIGTERM, _stop)
    screen = local.console()
    with _shown(screen) as show:
        tracker = Tracker(show)
        page = serve_status(status_port, _pages(tracker)) if status_port is not None else None
        try:
            trust.install()
            path = local.fetch(source, screen) if source.startswith("hf://") else _path(source)
            refuse_changed(path, os.environ.get(ENVIRONMENT))
            options = _options(
                source, path, work_dir, method, w_bits, w_group_size, format, calib_dataset, calib_samples,
                calib_seqlen, batch_size, (search_scale, clip, compensate), eval_dataset, eval_samples,
                max_perplexity_increase, max_kl_divergence, memory, threads, seed,
            )  # fmt: skip
            outcome = QuantizeJob(options, tracker, lambda note: screen.print(note, highlight=False)).run()
        except PlimsollError as error:
            tracker.move("Failed", 0.0, reason=reason_of(error), message=str(error))
            if isinstance(error, BusyError):
                typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
                raise typer.Exit(TRY_AGAIN) from None
            raise
        finally:
            tracker.last_words()
            if page is not None:
                page.shutdown()
    _tell(outcome, work_dir)
    if outcome.reasons:
        for reason in outcome.reasons:
            typer.secho(f"past its limit: {reason}", fg=typer.colors.RED, err=True)
        raise typer.Exit(GATE_FAILED)


def _options(
    source: str, path: Path, work_dir: Path, method: str, bits: int | None, group_size: int | None,
    written: str | None, dataset: str, samples: int, length: int, batch: int | None, parts: tuple[bool, bool, bool],
    eval_dataset: str | None, eval_samples: int, increase: str | None, divergence: str | None, memory: str | None,
    threads: int | None, seed: int,
) -> "JobOptions":  # fmt: skip
    from plimsoll.api.gate import Limits, parse_divergence, parse_increase
    from plimsoll.api.quantity import byte_option
    from plimsoll.cli import local
    from plimsoll.quantjob.job import JobOptions
    from plimsoll.quantjob.recipe import Recipe
    from plimsoll.quantjob.tokens import TokenPlan
    from plimsoll.runtime.engine.cgroup import host_line

    eight = method == "int8"
    values: dict[str, Any] = {
        "method": method, "bits": bits if bits is not None else 8 if eight else 4,
        "group_size": group_size if group_size is not None else 0 if eight else 128,
        "format": written or ("compressed-tensors" if eight else "awq"), "seed": seed,
    }  # fmt: skip
    names = ("search_scale", "clip", "compensate")
    # What a method does not look at is no part of its recipe.
    values |= dict(zip(names, parts if method == "awq" else (False, False, False), strict=True))
    recipe = Recipe(**values)
    limits = Limits(
        None if increase is None else parse_increase(increase, "--max-perplexity-increase"),
        None if divergence is None else parse_divergence(divergence, "--max-kl-divergence"),
    )
    plan = TokenPlan(dataset, samples if recipe.calibrates else 0, length, eval_samples, eval_dataset, seed)
    line = byte_option(memory, "--memory") if memory else host_line()[0]
    return JobOptions(path, local.own_name(source, path), work_dir, recipe, plan, limits, line, batch, threads)


def _path(source: str) -> Path:
    from plimsoll.checkpoint.sources import resolve

    return resolve(source)


def _pages(tracker: "Tracker") -> dict[str, Callable[[], tuple[int, bytes]]]:
    """`JobProgress` as JSON, and whether there is any yet."""

    def ready() -> tuple[int, bytes]:
        started = tracker.now.phase != "Preparing"
        return 200 if started else 503, b'{"ready":true}' if started else b'{"ready":false}'

    return {"/status": lambda: (200, tracker.now.encode()), "/ready": ready}


def _stop(signal_number: int, frame: object) -> NoReturn:
    """What is done stays, and the next run goes on from it."""
    # An exception raised inside a destructor or a weak reference's callback is swallowed: then this thread ends the
    # process, which a kill at any instant harms no more than a signal.
    sure = threading.Timer(LEAVING_SECONDS, os._exit, (128 + signal_number,))
    sure.daemon = True
    sure.start()
    raise SystemExit(128 + signal_number)


@contextmanager
def _shown(screen: "Console") -> Iterator[Callable[["JobProgress"], None]]:
    """A bar where somebody looks at a terminal; elsewhere a line for each layer, and for each phase."""
    if not screen.is_terminal:
        yield _Lines()
        return
    from rich.progress import BarColumn, Progress

    from plimsoll.cli.screen import column

    columns = (column("{task.description}"), BarColumn(), column("{task.percentage:>3.0f} %"),
               column("{task.fields[words]}"))  # fmt: skip
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task("Preparing", total=100.0, words="")

        def show(now: "JobProgress") -> None:
            bar.update(task, completed=now.percent, description=now.phase, words=words(now))

        yield show


class _Lines:
    """Says where the job is whenever a layer or a phase is over."""

    def __init__(self) -> None:
        self._last: tuple[str, int] | None = None

    def __call__(self, now: "JobProgress") -> None:
        here = (now.phase, now.layer)
        if here != self._last and now.phase != "Failed":
            self._last = here
            print(f"{now.phase.lower()}{words(now, ': ')}", file=sys.stderr, flush=True)


def words(now: "JobProgress", before: str = "") -> str:
    """Layer, pace, time left and the most memory taken, as far as they are known."""
    from plimsoll.api.quantity import format_bytes

    found = []
    if now.of and now.phase == "Quantizing":
        found.append(f"layer {now.layer} of {now.of}")
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


def _tell(outcome: "Outcome", work_dir: Path) -> None:
    """The figures, and where the output is."""
    found = dict(outcome.manifest.evaluation)
    if found:
        after, nearest = found["after"], found.get("roundToNearest")
        line = f"perplexity {found['before']:.4g} -> {after['perplexity']:.4g} ({found['increase']:+.2%}), "
        line += f"KL {after['klMean']:.4g} nats a token (99 of 100 below {after['klP99']:.4g}), "
        line += f"same first choice {after['top1Agreement']:.1%}"
        typer.echo(line)
        if nearest and nearest["klMean"] > 0:
            closed = 1 - after["klMean"] / nearest["klMean"]
            typer.echo(
                f"rounding alone: perplexity {nearest['perplexity']:.4g}, KL {nearest['klMean']:.4g}; "
                f"{closed:.0%} of that divergence is avoided"
            )
        typer.echo(f"Report: {work_dir / 'report.html'}")
    typer.echo(f"{outcome.manifest.digest}")
    typer.echo(f"Wrote {work_dir}: plimsoll serve {work_dir}")
