"""`plimsoll bench`: how fast any OpenAI endpoint answers under a load of our choosing."""

import dataclasses
import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from plimsoll.api.choice import check_choice
from plimsoll.api.errors import PlimsollError, SpecError
from plimsoll.cli import screen

LATENCIES = {
    "time_to_first_token": "time to first token",
    "inter_token_latency": "between tokens",
    "time_per_output_token": "per output token",
    "end_to_end": "whole request",
}
#: Tokens of a random prompt where no option says it.
DEFAULT_INPUT = 256
POINTS = ("mean", "p50", "p90", "p95", "p99", "max")


def bench(
    url: Annotated[str, typer.Option(help="The endpoint, with or without /v1.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Default: the first the endpoint names.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File whose first line is the key.")] = None,
    api: Annotated[str, typer.Option(help="chat or completions.")] = "chat",
    requests: Annotated[int, typer.Option("--requests", "-n", min=1)] = 100,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Requests in flight; default 8.")] = None,
    rate: Annotated[
        float | None, typer.Option(help="Requests a second, as a Poisson process, in place of --concurrency.")
    ] = None,
    input_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of each random prompt, about. Default: 256.")
    ] = None,
    output_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer at most.")] = 128,
    prompt_file: Annotated[
        Path | None, typer.Option(help="A prompt a line, used in turn, in place of random ones.")
    ] = None,
    ignore_eos: Annotated[bool, typer.Option(help="Answers of full length; not every endpoint knows it.")] = False,
    warmup: Annotated[int, typer.Option(min=0, help="Requests sent first and not counted.")] = 2,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds without a byte before giving up.")] = 600.0,
    seed: Annotated[int, typer.Option(help="Of prompts and arrivals.")] = 0,
    output_json: Annotated[Path | None, typer.Option(help="Settings, figures and each request.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Distributions of the latencies, as a picture.")] = None,
) -> None:
    """Measure an OpenAI endpoint: latency percentiles and throughput under load."""
    from plimsoll.cli import load
    from plimsoll.cli.conversation import Endpoint, first_key
    from plimsoll.runtime.server import loop

    if rate is not None and (concurrency is not None or rate <= 0):
        raise SpecError("must be positive and cannot be combined with --concurrency", field="--rate", value=rate)
    if prompt_file is not None and input_tokens is not None:
        raise SpecError(
            "is of random prompts, and --prompt-file gives others", field="--input-tokens", value=input_tokens,
            fix="Leave one",
        )  # fmt: skip
    check_choice(api, ("chat", "completions"), "--api")
    in_flight = None if rate is not None else concurrency or 8
    key = first_key(api_key_file, "--api-key-file") if api_key_file else None
    with closing(Endpoint(url, model, key)) as endpoint:
        target = load.Target(
            url=endpoint.url, model=endpoint.model, key=key, api="chat" if api == "chat" else "completions",
            output_tokens=output_tokens, timeout=timeout, extra={"ignore_eos": True} if ignore_eos else {},
        )  # fmt: skip
    console = screen.console()
    words = size = DEFAULT_INPUT if input_tokens is None else input_tokens
    if warmup:
        words = _warm_up(target, warmup, size, seed)
    if prompt_file:
        lines = [line for line in _read(prompt_file, "--prompt-file").split("\n") if line.strip()]
        if not lines:
            raise SpecError("holds no prompt", field="--prompt-file", value=str(prompt_file))
        prompts = [lines[index % len(lines)] for index in range(requests)]
    else:
        prompts = load.random_prompts(requests, words, seed)
    columns = (screen.column("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"{target.model} at {target.url}", total=requests)
        outcomes, seconds = loop.run(
            load.run(
                target, prompts, concurrency=in_flight, rate=rate, seed=seed,
                on_done=lambda outcome: progress.advance(task),
            )
        )  # fmt: skip
    result = load.summary(outcomes, seconds)
    settings = {
        "url": target.url, "model": target.model, "api": api, "requests": requests, "concurrency": in_flight,
        "rate": rate, "input_tokens": None if prompt_file else size, "output_tokens": output_tokens,
        "ignore_eos": ignore_eos, "warmup": warmup, "seed": seed,
    }  # fmt: skip
    show(result, screen.console(stderr=False))
    if output_json:
        each = [dataclasses.asdict(outcome) for outcome in outcomes]
        _write(output_json, json.dumps({"settings": settings, "result": result, "each": each}, indent=1))
    if plot and result["succeeded"]:
        draw(outcomes, f"{target.model}: {requests} requests", plot)
    if not result["succeeded"]:
        raise PlimsollError(f"every request failed: {_kinds(result)}", field="--url", value=target.url)


def _warm_up(target: Any, count: int, input_tokens: int, seed: int) -> int:
    """Sends `count` requests one by one; returns how many words make a prompt of `input_tokens` tokens.

    The chat template costs tokens too, so two lengths are compared where the endpoint counts for us.
    """
    from plimsoll.cli import load
    from plimsoll.runtime.server import loop

    short, long = max(1, input_tokens // 2), input_tokens
    sizes = [short if index % 2 else long for index in range(count)]
    prompts = [load.random_prompts(1, size, seed + 1000 + index)[0] for index, size in enumerate(sizes)]
    outcomes, _ = loop.run(load.run(target, prompts, concurrency=1))
    failed = [outcome.error for outcome in outcomes if outcome.error]
    if failed:
        raise PlimsollError(f"warm-up request failed: {failed[0]}", field="--url", value=target.url)
    counted = {size: o.prompt_tokens for size, o in zip(sizes, outcomes, strict=True) if o.prompt_tokens}
    if long == short or not counted.get(long):
        return input_tokens
    if not counted.get(short):
        return max(1, round(long * input_tokens / counted[long]))
    per_word = max((counted[long] - counted[short]) / (long - short), 0.1)
    return max(1, round(long + (input_tokens - counted[long]) / per_word))


def show(result: dict[str, Any], console: Console) -> None:
    """Prints the summary: throughput, then a table of latencies in milliseconds."""
    by_chunk = "" if result["tokens_counted_by_endpoint"] else " (chunks: the endpoint does not count tokens)"
    console.print(
        Text.assemble(
            f"{result['succeeded']} of {result['requests']} requests in {result['seconds']:.2f} s · ",
            (f"{result['output_tokens_per_second']:.1f}", "bold"),
            f" output tokens/s{by_chunk} · {result['total_tokens_per_second']:.1f} tokens/s in all · "
            f"{result['requests_per_second']:.2f} requests/s",
        )
    )
    if result["errors"]:
        console.print(f"failed: {_kinds(result)}", style="red")
    table = Table("milliseconds", *POINTS)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, title in LATENCIES.items():
        if result[name]:
            table.add_row(title, *(f"{result[name][point] * 1000:.1f}" for point in POINTS))
    console.print(table)


def draw(outcomes: Any, title: str, path: Path) -> None:
    """Cumulative distributions of the three latencies, and tokens answered over time, as a picture at `path`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    good = [outcome for outcome in outcomes if outcome.error is None]
    series = {
        "time to first token": [outcome.first for outcome in good],
        "between tokens": [gap for outcome in good for gap in outcome.gaps],
        "whole request": [outcome.total for outcome in good],
    }
    figure, axes = pyplot.subplots(1, 4, figsize=(16, 3.6), layout="constrained")
    for axis, (name, values) in zip(axes, series.items(), strict=False):
        ordered = sorted(values)
        axis.step([v * 1000 for v in ordered], [(i + 1) / len(ordered) for i in range(len(ordered))], where="post")
        axis.set(title=name, xlabel="ms", ylabel="share of all", ylim=(0, 1))
        axis.grid(alpha=0.3)
    ends = [int(outcome.started + outcome.total) for outcome in good]
    tokens = [0] * (max(ends) + 1)
    for end, outcome in zip(ends, good, strict=True):
        tokens[end] += outcome.output_tokens
    axes[3].bar(range(len(tokens)), tokens, width=1)
    axes[3].set(title="tokens of requests ending", xlabel="s", ylabel="tokens in that second")
    figure.suptitle(title)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise PlimsollError(f"cannot write the plot: {error}", field="--plot", value=str(path)) from None
    finally:
        pyplot.close(figure)


def _kinds(result: dict[str, Any]) -> str:
    return ", ".join(f"{count} × {kind}" for kind, count in sorted(result["errors"].items()))


def _read(path: Path, option: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot be read: {error}", field=option, value=str(path)) from None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise SpecError(f"cannot be written: {error}", field="--output-json", value=str(path)) from None
