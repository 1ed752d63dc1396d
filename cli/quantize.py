"""`plimsoll quantize`: a checkpoint as a 4-bit or 8-bit one, measured against what it was made of."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from plimsoll.api.cache_loss import recommendation
from plimsoll.api.errors import PlimsollError, SpecError
from plimsoll.api.printable import printable

if TYPE_CHECKING:
    from plimsoll.quantjob.job import Outcome
    from plimsoll.quantjob.progress import Tracker
    from plimsoll.quantjob.recipe import Recipe
    from plimsoll.quantjob.tokens import TokenPlan

#: What a user calls the checkpoint.
SOURCE = "SOURCE"
#: Exit status when the output is there and lost more than was allowed.
GATE_FAILED = 3
#: Exit status of what may work when it is tried again.
TRY_AGAIN = 75
#: Seconds that a process has to unwind after a stop signal.
LEAVING_SECONDS = 10.0


def quantize(
    source: Annotated[str, typer.Argument(help="The checkpoint: a folder, a .gguf file, hf://ORG/NAME.")],
    work_dir: Annotated[Path, typer.Option(help="The folder to write. A run that was stopped goes on here.")],
    method: Annotated[str, typer.Option(help="awq, rtn (round to nearest), or int8 (8 bits a weight).")] = "awq",
    w_bits: Annotated[int | None, typer.Option(help="Bits of a weight. Default: 4; 8 for int8.")] = None,
    w_group_size: Annotated[
        int | None,
        typer.Option(help="Columns that share a scale: 32, 64 or 128. Default: the largest that divides the model."),
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="awq or compressed-tensors. Default: awq; int8 has the other one.")
    ] = None,
    calib_dataset: Annotated[
        str, typer.Option(help="Text to look at: self, a file or folder, hf://datasets/ORG/NAME/CONFIG/SPLIT.")
    ] = "self",
    calib_samples: Annotated[
        int | None, typer.Option(min=1, help="awq: windows that calibrate. Default: 32 of self, 128 of other text.")
    ] = None,
    calib_seqlen: Annotated[
        int | None, typer.Option(help="Tokens of a window, of both texts; 16 or more. Default: 512.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Windows computed at once. Default: what --memory holds.")
    ] = None,
    search_scale: Annotated[
        bool | None,
        typer.Option("--search-scale/--no-search-scale", help="awq: look for scales of input channels. Default: yes."),
    ] = None,
    clip: Annotated[
        bool | None, typer.Option("--clip/--no-clip", help="awq: look for narrower ranges. Default: yes.")
    ] = None,
    compensate: Annotated[
        bool | None,
        typer.Option(
            "--compensate/--no-compensate",
            help="awq: let each column make up for the rounding of those before it. Default: yes.",
        ),
    ] = None,
    eval_dataset: Annotated[
        str | None, typer.Option(help="Held-out text. Default: other text of --calib-dataset.")
    ] = None,
    eval_samples: Annotated[int, typer.Option(min=0, help="Windows to measure on; 0 measures nothing.")] = 16,
    shard_size: Annotated[str, typer.Option(help="Most of a file of weights, as 5G or 500Mi.")] = "5G",
    max_perplexity_increase: Annotated[str | None, typer.Option(help="Exit 3 when it rose by more, as 2%.")] = None,
    max_kl_divergence: Annotated[str | None, typer.Option(help="Exit 3 when the mean is more, nats a token.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Most that the process may take, as 8Gi. Default: what there is.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: one for each processor.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="awq: processes that share the search and --threads. Default: 1; all devices for cuda."),
    ] = None,
    device: Annotated[str, typer.Option(help="awq: cpu, or cuda to search on all or --workers devices.")] = "cpu",
    device_memory: Annotated[
        str | None, typer.Option(help="cuda: most of each device that the search may take, as 24Gi. Default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of text, and of sampling it.")] = 0,
    status_port: Annotated[int | None, typer.Option(help="Serve /status, /live and /ready there meanwhile.")] = None,
) -> None:
    """Quantize a checkpoint, measure what that cost, and refuse the result when it cost too much.

    Exits 0 when it is done, 3 when it is past a limit, 1 when it cannot be done, 75 when another run is at work here.
    Stopped by a signal or killed, it goes on where it was when it is run again.
    """
    from plimsoll.api.gate import parse_limits
    from plimsoll.api.quantity import byte_option
    from plimsoll.checkpoint import guard, trust
    from plimsoll.checkpoint.contents import ENVIRONMENT, refuse_changed
    from plimsoll.checkpoint.sources import named, resolve
    from plimsoll.cli import local
    from plimsoll.cli.progress_lines import shown
    from plimsoll.cli.status_page import serve_status
    from plimsoll.quantjob.failures import BusyError, WorkersLostError, reason_of
    from plimsoll.quantjob.job import QuantizeJob
    from plimsoll.quantjob.job_options import JobOptions
    from plimsoll.quantjob.progress import Tracker
    from plimsoll.runtime.machine.cgroup import host_line

    guard.install()
    signal.signal(signal.SIGTERM, _stop)
    screen = local.console()
    with shown(screen) as show:
        tracker = Tracker(show)
        page = serve_status(status_port, _pages(tracker)) if status_port is not None else None
        try:
            trust.install()
            # Before anything is fetched.
            recipe = _recipe(method, w_bits, w_group_size, format, (search_scale, clip, compensate), seed)
            limits = parse_limits(max_perplexity_increase, max_kl_divergence)
            if calib_samples is not None and not recipe.calibrates:
                raise _searches_not("--calib-samples", method)
            plan = _plan(recipe, calib_dataset, calib_samples, calib_seqlen, eval_samples, eval_dataset, seed)
            line = byte_option(memory, "--memory") if memory else host_line()[0]
            shards = byte_option(shard_size, "--shard-size")
            if source.startswith("hf://"):
                path = local.fetch(source, screen, SOURCE)
            else:
                with named(SOURCE):
                    path = resolve(source)
            refuse_changed(path, os.environ.get(ENVIRONMENT))
            given = {"group_size": w_group_size, "length": calib_seqlen}
            options = JobOptions(
                path, local.own_name(source, path), work_dir, recipe, plan, limits, line, batch_size, threads, shards,
                frozenset(name for name, value in given.items() if value is None), workers, device,
                None if device_memory is None else byte_option(device_memory, "--device-memory"),
            )  # fmt: skip
            outcome = QuantizeJob(options, tracker, lambda note: screen.print(note, highlight=False)).run()
        except PlimsollError as error:
            tracker.move("Failed", 0.0, reason=reason_of(error), message=str(error))
            if isinstance(error, BusyError | WorkersLostError):
                typer.secho(printable(f"error: {error}"), fg=typer.colors.RED, err=True)
                raise typer.Exit(TRY_AGAIN) from None
            raise
        finally:
            tracker.last_words()
            if page is not None:
                page.shutdown()
    _tell(outcome, work_dir)
    if outcome.reasons:
        for reason in outcome.reasons:
            typer.secho(printable(f"past its limit: {reason}"), fg=typer.colors.RED, err=True)
        raise typer.Exit(GATE_FAILED)


def _recipe(
    method: str, bits: int | None, group_size: int | None, written: str | None,
    parts: tuple[bool | None, bool | None, bool | None], seed: int,
) -> "Recipe":  # fmt: skip
    from plimsoll.quantjob.recipe import Recipe

    eight = method == "int8"
    values: dict[str, Any] = {
        "method": method, "bits": bits if bits is not None else 8 if eight else 4,
        "group_size": group_size if group_size is not None else 0 if eight else 128,
        "format": written or ("compressed-tensors" if eight else "awq"), "seed": seed,
    }  # fmt: skip
    names = ("search_scale", "clip", "compensate")
    values |= {name: method == "awq" and part is not False for name, part in zip(names, parts, strict=True)}
    found = Recipe(**values)
    for name, part in zip(names, parts, strict=True):
        if method != "awq" and part is not None:
            option = f"--{'' if part else 'no-'}{name.replace('_', '-')}"
            raise _searches_not(option, method)
    return found


def _searches_not(option: str, method: str) -> SpecError:
    return SpecError("goes with method awq, the only one that searches", field=option, value=method, fix="Leave it out")


def _plan(
    recipe: "Recipe", dataset: str, samples: int | None, length: int | None, held_out: int, eval_dataset: str | None,
    seed: int,
) -> "TokenPlan":  # fmt: skip
    from plimsoll.api.job_budget import DEFAULT_LENGTH, default_samples
    from plimsoll.quantjob.tokens import TokenPlan

    windows = samples if samples is not None else default_samples(dataset == "self")
    plan = TokenPlan(
        dataset, windows if recipe.calibrates else 0, DEFAULT_LENGTH if length is None else length, held_out,
        eval_dataset, seed,
    )  # fmt: skip
    plan.check_places()
    return plan


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


def _tell(outcome: "Outcome", work_dir: Path) -> None:
    """The figures, and where the output is."""
    found = dict(outcome.manifest.evaluation)
    if found:
        after, nearest = found["after"], found.get("roundToNearest")
        line = f"perplexity {found['before']:.4g} -> {after['perplexity']:.4g} ({found['increase']:+.2%}), "
        line += f"KL {after['klMean']:.4g} nats a token (99 of 100 below {after['klP99']:.4g}), "
        line += f"same first choice {after['top1Agreement']:.1%}"
        typer.echo(printable(line))
        if nearest and nearest["klMean"] > 0:
            closed = 1 - after["klMean"] / nearest["klMean"]
            typer.echo(
                f"rounding alone: perplexity {nearest['perplexity']:.4g}, KL {nearest['klMean']:.4g}; "
                f"{closed:.0%} of that divergence is avoided"
            )
        for one in found.get("caches") or ():
            typer.echo(
                f"cache in {one['precision']}: perplexity {one['perplexity']:.4g} ({one['increase']:+.2%}), "
                f"KL {one['klMean']:.4g} from a cache of floats, same first choice {one['top1Agreement']:.1%}"
            )
        if recommended := found.get("recommendedCache"):
            typer.echo(f"recommended: kvCache.precision {recommended} ({recommendation(recommended)})")
        typer.echo(printable(f"Report: {work_dir / 'report.html'}"))
    typer.echo(f"{outcome.manifest.digest}")
    typer.echo(printable(f"Wrote {work_dir}: plimsoll serve {work_dir}"))
