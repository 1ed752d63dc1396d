"""`plimsoll plan -f FILE`: the memory budget, before anything is loaded."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from plimsoll.api.choice import check_choice
from plimsoll.api.errors import CheckpointError, DoesNotFitError, NotRunYetError, SpecError
from plimsoll.api.precision import ActivationPrecision

if TYPE_CHECKING:
    from plimsoll.api.budget import Budget
    from plimsoll.api.deployment import ModelDeployment
    from plimsoll.api.device import TableFacts
    from plimsoll.api.model import ModelFacts
    from plimsoll.checkpoint.checkpoint import Checkpoint

    Found = tuple[ModelFacts, Sequence[str], Checkpoint | None]
    """What is known of a model; no checkpoint where only a configuration is at hand."""


def plan(
    file: Annotated[str, typer.Option("--file", "-f", help="A ModelDeployment in YAML; - reads it from stdin.")],
    name: Annotated[str | None, typer.Option(help="Which deployment, where the file holds several.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A config.json or its folder, in place of the model's source."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default: the manifest's accelerator.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="The line, as 24Gi. Default: the manifest's, else what this machine has.")
    ] = None,
    activation_precision: Annotated[
        str | None,
        typer.Option(
            help="What activations become where they meet weights of 4 or 8 bits, on a CPU: auto, int8 or bfloat16. "
            "Default: the manifest's."
        ),
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="table or json.")] = "table",
) -> None:
    """Show what a deployment will hold in memory, whether it fits, and what would. Exits 1 when it does not."""
    check_choice(output, ("table", "json"), "--output")
    if device is not None:
        check_choice(device, ("cpu", "cuda"), "--device")
    if activation_precision is not None:
        check_choice(activation_precision, get_args(ActivationPrecision), "--activation-precision")

    from plimsoll.api.activations import rows_note, rows_of
    from plimsoll.api.budget import short_context
    from plimsoll.api.cache_loss import cache_chosen, cache_loss
    from plimsoll.api.load import load_of, refuse_not_run_yet
    from plimsoll.api.manifest import parse_manifest, parse_objects
    from plimsoll.api.precision import slow_codes
    from plimsoll.api.quantity import byte_option
    from plimsoll.api.rank_budget import uneven
    from plimsoll.api.second_rounding import as_stored, rounded_again
    from plimsoll.api.shard import replication
    from plimsoll.checkpoint.key_biases import key_bias_ranges
    from plimsoll.cli.local_jobs import serving as serving_outputs
    from plimsoll.cli.local_jobs import written
    from plimsoll.cli.manifest_file import read_manifest
    from plimsoll.cli.sizing import place_of, sized
    from plimsoll.runtime.kernels.forecast import libraries_note

    text, filename = read_manifest(file)
    asked = parse_manifest(text, filename, name)
    [deployment] = serving_outputs([asked], written(parse_objects(text, filename)))
    spec = deployment.spec
    if activation_precision is not None:
        serving = spec.serving.model_copy(update={"activation_precision": activation_precision})
        spec = spec.model_copy(update={"serving": serving})
    facts, notices, checkpoint = _facts(deployment, config)
    line = spec.accelerator.memory if memory is None else byte_option(memory, "--memory")
    kind: Literal["cpu", "cuda"] = "cpu" if (device or spec.accelerator.resource) == "cpu" else "cuda"
    place = place_of(spec, kind, line)
    card = place.card
    draft = None if spec.serving.draft is None else _draft_facts(spec.serving.draft.source)
    load = load_of(spec, facts, draft)
    report: dict[str, Any] = {
        "name": deployment.metadata.name,
        "model": deployment.served_name,
        "architecture": facts.architecture,
        "device": {"kind": card.kind, "total": card.total, "kernels": _kernels(card.table)},
    }
    try:
        found = sized(spec, facts, place, draft)
    except DoesNotFitError as error:
        if output == "json":
            typer.echo(json.dumps({**report, "fits": False, "reason": error.message, "fitsWith": error.ways}, indent=2))
            raise typer.Exit(1) from None
        raise
    not_run = None
    try:
        tensor = spec.parallelism.model_copy(update={"tensor": found.tensor})
        refuse_not_run_yet(spec.model_copy(update={"precision": found.precision, "parallelism": tensor}))
    except NotRunYetError as error:
        not_run = str(error)
    of_ranks = [*uneven(found.ranks, facts, found.devices), replication(facts, found.tensor)]
    slow = slow_codes(found.precision, card.kind, card.table)
    again = rounded_again(facts, found.precision)
    held = None if found.cache_precision == "float" else checkpoint
    lossy = cache_loss(facts, found.cache_precision, None if held is None else key_bias_ranges(held))
    chosen = cache_chosen(facts, load.cache_precision, found.cache_precision)
    report |= {
        "fits": True,
        "device": {**report["device"], "total": found.total},
        "precision": found.precision,
        "asStored": as_stored(facts, found.precision),
        "cachePrecision": found.cache_precision,
        "activationPrecision": rows_of(spec.serving.activation_precision, found.precision, card.table),
        "activations": rows_note(spec.serving.activation_precision, found.precision, card.table),
        "tensor": found.tensor,
        "pods": _pods(found, card.kind),
        "perDevice": found.per_device(),
        "ranks": found.per_rank(),
        "inUse": found.in_use,
        "workspace": dict(found.workspace_terms),
        "blocks": found.blocks,
        "blockSize": found.block_size,
        "blockBytes": found.block_bytes,
        "hostBlocks": found.host_blocks,
        "hostBlockBytes": found.fullest.host_block,
        **({} if found.draft is None else {"draftPrecision": found.draft.precision}),
        "kvTokens": found.kv_tokens,
        "maxLength": found.max_length,
        "maxLengthFrom": _length_from(load.max_length, load.trained_length, found.max_length),
        "concurrentRequests": found.concurrent_requests,
        "rejected": [{"option": item.option, "reason": item.reason} for item in found.rejected],
        "notes": [
            note
            for note in (
                *notices,
                short_context(found, load),
                *of_ranks,
                again,
                chosen,
                lossy,
                slow,
                libraries_note(card.libraries),
            )
            if note
        ],
        "notRunYet": not_run,
    }
    if output == "json":
        typer.echo(json.dumps(report, indent=2))
        return

    from plimsoll.cli.load_line import show

    show(report)


def _pods(found: "Budget", kind: str) -> dict[str, int]:
    """What one replica takes of a cluster: pods, and the devices and bytes of memory of each on a CPU."""
    from plimsoll.api.budget import SERVER_BYTES

    memory = {"memoryEach": found.pod_bytes + SERVER_BYTES} if kind == "cpu" else {}
    return {"count": found.nodes, "ranksEach": found.pod_ranks, **memory}


def _facts(deployment: "ModelDeployment", config: Path | None) -> "Found":
    """Facts of the model and notices on them, from headers where weights are at hand, else from a configuration."""
    source = deployment.spec.model.source
    if config is None and not source:
        raise SpecError(
            "what it will write is not there yet", field="spec.model.quantizationJob",
            value=deployment.spec.model.quantization_job,
            fix="Give --config CONFIG.JSON of the checkpoint that it quantizes, and precision: w4a16",
        )  # fmt: skip
    return _facts_at(source, config)


def _draft_facts(source: str) -> "ModelFacts":
    from plimsoll.api.draft import FIELD as DRAFT
    from plimsoll.checkpoint.sources import named

    with named(f"{DRAFT}.source"):
        return _facts_at(source, None)[0]


def _facts_at(source: str, config: Path | None) -> "Found":
    from plimsoll.api.facts import config_notes, facts_from_config
    from plimsoll.checkpoint.json_file import read_object
    from plimsoll.checkpoint.open import open_checkpoint
    from plimsoll.checkpoint.sources import parse_hub, resolve

    if config is None and source.startswith("hf://"):
        # A few kilobytes; a GGUF file holds its own.
        config = None if parse_hub(source).file else resolve(source, files=("config.json",))
    if config is None:
        path = resolve(source)
        weights = path.is_file() or any(any(path.glob(kind)) for kind in ("*.safetensors", "*.gguf", "*.bin"))
        if path.suffix == ".json" or not weights:
            config = path
        else:
            checkpoint = open_checkpoint(path)
            return checkpoint.facts, checkpoint.notices, checkpoint
    where = config / "config.json" if config.is_dir() else config
    try:
        described = read_object(where)
        return facts_from_config(described), config_notes(described, f"{where}: "), None
    except CheckpointError as error:
        field = error.field or ""
        raise CheckpointError(
            error.message, field=field if field.startswith(str(where)) else f"{where}: {field}".removesuffix(": "),
            value=error.value, fix=error.fix,
        ) from None  # fmt: skip


def _kernels(table: "TableFacts") -> str:
    """What is assumed of the kernels that will run, in words: they decide how weights and activations lie."""
    return f"native, panels of {table.row_tile} rows" if table.row_tile > 1 else "plain torch"


def _length_from(asked: int | None, trained: int | None, length: int) -> str:
    if asked is not None:
        return "spec.context.maxLength"
    return "trained length" if length == trained else "what the cache holds"
