"""`plimsoll eval`: how far one checkpoint, or what an endpoint serves, is from another."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plimsoll.api.choice import check_choice
from plimsoll.api.errors import SpecError
from plimsoll.api.printable import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from plimsoll.checkpoint.checkpoint import Checkpoint
    from plimsoll.quantjob.progress import Tracker
    from plimsoll.quantjob.report import Report
    from plimsoll.quantjob.streamed import StreamedModel

#: Exit status when a limit was passed: the figures are there, and the answer is no.
PAST_A_LIMIT = 3


def eval(
    reference: Annotated[str, typer.Argument(help="The checkpoint to measure from: a folder, a .gguf file, hf://…")],
    other: Annotated[str, typer.Argument(help="The checkpoint to measure, or an endpoint: http://HOST:PORT/v1.")],
    dataset: Annotated[
        str, typer.Option(help="Held-out text: self, a file or folder, or hf://datasets/ORG/NAME/CONFIG/SPLIT.")
    ] = "self",
    samples: Annotated[int, typer.Option(min=1, help="Windows to measure on, from the dataset's end.")] = 32,
    seqlen: Annotated[int | None, typer.Option(min=2, help="Tokens of a window. Default: 512 at most.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the texts; of the text for self.")] = 0,
    round_to_nearest: Annotated[
        str | None, typer.Option(help="Also what rounding alone would cost: 4 or 8 bits, as 4/64 with groups of 64.")
    ] = None,
    max_perplexity_increase: Annotated[str | None, typer.Option(help="Exit 3 when it rose by more, as 2%.")] = None,
    max_kl_divergence: Annotated[str | None, typer.Option(help="Exit 3 when the mean is more, nats a token.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write report.html and report.json into this folder.")] = None,
    model_name: Annotated[str | None, typer.Option(help="Which of the endpoint's models. Default: its first.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File whose first line is the endpoint's key.")] = None,
    memory: Annotated[str | None, typer.Option(help="Most that sampling text for self may take, as 8Gi.")] = None,
    scratch: Annotated[Path | None, typer.Option(help="A folder for hidden states, in place of memory.")] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="table or json.")] = "table",
) -> None:
    """Compare checkpoints on held-out text: perplexity, KL divergence, agreement. Exits 3 when a limit is passed."""
    check_choice(output, ("table", "json"), "--output")

    from plimsoll.api.gate import gate, parse_limits
    from plimsoll.api.quantity import byte_option
    from plimsoll.checkpoint import open_checkpoint
    from plimsoll.checkpoint.tokenizer import load_tokenizer
    from plimsoll.cli import local
    from plimsoll.cli.progress_lines import shown
    from plimsoll.quantjob.data import Corpus, check_dataset
    from plimsoll.quantjob.endpoint_evaluation import compare_endpoint
    from plimsoll.quantjob.evaluation import check_length, check_vocabularies, compare
    from plimsoll.quantjob.progress import Tracker
    from plimsoll.quantjob.report import Report, as_json, check_folder, write_report
    from plimsoll.quantjob.selftext import self_tokens
    from plimsoll.quantjob.streamed import StreamedModel
    from plimsoll.quantjob.tokens import HELD_OUT

    limits = parse_limits(max_perplexity_increase, max_kl_divergence)
    line = None if memory is None else byte_option(memory, "--memory")
    served = other.startswith(("http://", "https://"))
    if not served and (model_name or api_key_file):
        raise SpecError("goes with an endpoint", field="--model-name" if model_name else "--api-key-file", value=other)
    if served and round_to_nearest:
        raise SpecError("goes with two checkpoints", field="--round-to-nearest", value=other)
    if scratch is not None and not scratch.is_dir():
        raise SpecError("there is no such folder", field="--scratch", value=str(scratch), fix="Make it")
    check_dataset(dataset, "--dataset")
    if report is not None:
        check_folder(report)
    screen = local.console()
    path = local.fetch(reference, screen, "REFERENCE")
    checkpoint = open_checkpoint(path, to_measure=True)
    rounding = None if round_to_nearest is None else _rounding(round_to_nearest, checkpoint.facts)
    tokenizer = load_tokenizer(checkpoint)
    measured = None if served else open_checkpoint(local.fetch(other, screen, "OTHER"), to_measure=True)
    notes = [*checkpoint.notices, *(() if measured is None else measured.notices)]
    notes += _refused({reference: checkpoint, other: measured})
    for note in notes:
        typer.secho(printable(f"note: {note}"), fg=typer.colors.YELLOW, err=True)
    endpoint = _endpoint(other, tokenizer, model_name, api_key_file) if served else None
    length = min(512, checkpoint.facts.max_position) if seqlen is None else seqlen
    check_length(length, checkpoint.facts)
    model = StreamedModel(checkpoint)
    subject = "endpoint" if endpoint is not None else _name(other, reference)
    nearest = None if rounding is None else "round to nearest"
    others = {} if nearest is None else {nearest: StreamedModel(checkpoint, round_to=rounding, workers=model.workers)}
    if measured is not None:
        others[subject] = StreamedModel(measured, workers=model.workers)
    # What can be refused is refused before any text is written.
    check_vocabularies(model, others)
    if endpoint is not None:
        endpoint.check([min(tokenizer.bos_token_id or 0, checkpoint.facts.vocab_size - 1)] * length)
    with shown(screen) as look:
        tracker = Tracker(look)
        with tracker.beating():
            if dataset == "self":

                def drawn(done: int, of: int) -> None:
                    tracker.move("Sampling", done / of, message=f"{done:,} of {of:,} tokens drawn")

                sets = [(samples, seed + HELD_OUT)]
                (tokens,) = self_tokens(path, sets, length, memory=line, progress=drawn, field="--dataset")
            else:
                corpus = Corpus(dataset, tokenizer, seed, field="--dataset")
                tokens = corpus.tail(samples, length)
            _expect(tracker, model, len(others) + 1, nearest is not None, tokens.windows.shape)

            def compared(share: float, upto: float) -> None:
                tracker.move("Evaluating", share, upto=upto)

            if endpoint is not None:
                found = compare_endpoint(model, endpoint, tokens, scratch=scratch, progress=compared)
            else:
                found = compare(model, others, tokens, scratch=scratch, progress=compared)
            tracker.move("Complete", 1.0)
    figures = found.others[subject]
    reasons = gate(found.perplexity, figures.perplexity, figures.kl_mean, limits)
    result = Report(
        title=f"{_name(reference, '')} and {other}", reference=_name(reference, ""), comparison=found, judged=subject,
        nearest=nearest, verdict="failed" if reasons else "passed" if limits.any else "none", reasons=reasons,
        tokens={"held out": tokens}, notes=notes, settings={
            "reference": reference, "other": other, "dataset": dataset, "seed": seed,
            "maxPerplexityIncrease": limits.perplexity_increase, "maxKLDivergence": limits.kl_divergence,
        },
    )  # fmt: skip
    written = None if report is None else write_report(report, result)
    if output == "json":
        typer.echo(json.dumps(as_json(result), indent=2))
    else:
        show(result)
        if written is not None:
            typer.echo(printable(f"Report: {written[0]}"))
    for reason in reasons:
        typer.secho(printable(f"past its limit: {reason}"), fg=typer.colors.RED, err=True)
    if reasons:
        raise typer.Exit(PAST_A_LIMIT)


def show(report: "Report") -> None:
    """The figures as a table on stdout."""
    from rich.table import Table

    from plimsoll.cli import screen
    from plimsoll.quantjob.report import kl_gap_closed

    found = report.comparison
    table = Table(box=None, pad_edge=False)
    for head in ("", "perplexity", "increase", "KL mean", "KL p99", "top-1", "gap closed"):
        table.add_column(head, justify="left" if not head else "right")
    table.add_row(report.reference, f"{found.perplexity:.4g}")
    for name, other in found.others.items():
        closed = kl_gap_closed(report, other)
        table.add_row(
            name, f"{other.perplexity:.4g}", f"{other.perplexity / found.perplexity - 1:+.2%}",
            f"{other.kl_mean:.4g}", f"{other.kl_p99:.4g}", f"{other.top1_agreement:.1%}",
            "" if closed != closed else f"{closed:.0%}",
        )  # fmt: skip
    console = screen.console(stderr=False)
    console.print(table)
    console.print(f"{found.positions} positions of {found.source}", style="dim", highlight=False)
    for other in found.others.values():
        if other.note:
            console.print(other.note, style="dim", highlight=False)


def _refused(checkpoints: "Mapping[str, Checkpoint | None]") -> list[str]:
    """A sentence for each that nothing but this command opens."""
    from plimsoll.checkpoint.quantized.manifest import failed_gate

    opened = {name: one for name, one in checkpoints.items() if one is not None and one.path.is_dir()}
    found = {name: failed_gate(one.path) for name, one in opened.items()}
    return [f"{name}: {why}. It is measured here and served nowhere" for name, why in found.items() if why]


def _name(source: str, beside: str) -> str:
    """What the table calls it: the last part of a path, all of it where that says nothing."""
    short = Path(source.removeprefix("file://")).name or source
    return source if source.startswith("hf://") or short == Path(beside).name else short


def _rounding(text: str, facts: Any) -> Any:
    from plimsoll.api.job_budget import check_groups
    from plimsoll.quantjob.recipe import GROUP_SIZES
    from plimsoll.quantjob.rounding import Rounding

    known = {"8": Rounding(8)} | {f"4/{size}": Rounding(4, size) for size in GROUP_SIZES}
    if text not in known:
        raise SpecError("is no such rounding", field="--round-to-nearest", value=text, fix=f"Use {', '.join(known)}")
    try:
        check_groups(facts, known[text].group_size)
    except SpecError as error:
        raise SpecError(error.message, field="--round-to-nearest", value=text, fix=error.fix) from None
    return known[text]


def _expect(tracker: "Tracker", model: "StreamedModel", models: int, nearest: bool, shape: tuple[int, ...]) -> None:
    """About how long the comparison takes, from the rates of this machine."""
    from plimsoll.quantjob.forecast import compared_steps, measure
    from plimsoll.quantjob.recipe import Recipe

    windows, length = shape
    # Of a recipe only rounding is timed here, and groups would have to divide the model.
    plain = Recipe("int8", 8, 0, "compressed-tensors", search_scale=False, clip=False, compensate=False)
    rates = measure(model, plain, length, None)
    steps = compared_steps(model.facts, rates, windows, length, models, nearest=nearest)
    tracker.expect({"Evaluating": models * model.num_layers * steps.layer + windows * steps.window})


def _endpoint(url: str, tokenizer: Any, model: str | None, key_file: Path | None) -> Any:
    from plimsoll.cli.conversation import first_key
    from plimsoll.quantjob.endpoint import Endpoint

    return Endpoint(url, tokenizer, model, first_key(key_file, "--api-key-file") if key_file else None)
