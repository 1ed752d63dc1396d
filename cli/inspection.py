"""`plimsoll inspect SOURCE`: what a checkpoint is, from its headers alone. In the cluster a short pod runs it."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Annotated, Any

import typer

from plimsoll.api.choice import check_choice
from plimsoll.api.errors import CheckpointError, PlimsollError, SpecError
from plimsoll.api.inspection import MAX_BYTES, Inspection
from plimsoll.api.printable import printable

#: For headers and configurations; those of a model of 1 TB take less than ten.
PROCESSOR_SECONDS = 120


def inspect(
    source: Annotated[str, typer.Argument(help="file://PATH, hf://ORG/NAME@REVISION or s3://BUCKET/PREFIX.")],
    report: Annotated[
        Path | None, typer.Option(help="A file for the packed report, or for the reason why there is none.")
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="text or json.")] = "text",
) -> None:
    """Show what a checkpoint is and what serving it needs, reading only its configuration and its tensors' headers."""
    from plimsoll.checkpoint import guard, trust
    from plimsoll.checkpoint.inspecting import inspect_source

    check_choice(output, ("text", "json"), "--output")
    # As the first process of a container, whose signals are ignored unless asked for.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    guard.install()
    try:
        with _limited_processor_time(source):
            trust.install()
            found = inspect_source(source)
            packed = found.encode() if report else b""
    except (PlimsollError, OSError, MemoryError) as error:
        _write(report, _words(error))
        raise
    except Exception as error:
        # A mistake of ours: its place and kind are known to the maintainers, its text might hold anything.
        failure = PlimsollError(f"cannot be inspected ({type(error).__name__})", field=source, fix="Report this")
        _write(report, _words(failure))
        raise failure from error
    _write(report, packed)
    _show(found, output)


@contextlib.contextmanager
def _limited_processor_time(source: str) -> Iterator[None]:
    """A checkpoint that is made to be slow ends with an error. The deadline of an inspect pod would not name it."""

    def late(*_: object) -> None:
        raise CheckpointError(f"takes more than {PROCESSOR_SECONDS} s of processor time to inspect", field=source)

    signal.signal(signal.SIGPROF, late)
    # Again every second: code that catches all exceptions must not go on for ever.
    signal.setitimer(signal.ITIMER_PROF, PROCESSOR_SECONDS, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _words(error: BaseException) -> bytes:
    """At most what a container's last words hold, cut between characters."""
    return (str(error) or type(error).__name__).encode()[:MAX_BYTES].decode(errors="ignore").encode()


def _write(report: Path | None, words: bytes) -> None:
    if report is None:
        return
    try:
        report.write_bytes(words)
    except OSError as error:
        raise SpecError(f"cannot be written: {error.strerror}", field="--report", value=str(report)) from None


def _show(found: Inspection, output: str) -> None:
    from plimsoll.api.quantity import format_bytes

    facts = found.facts
    tensors = facts.tensors or {}
    shown: dict[str, Any] = {
        "digest": found.digest,
        "revision": found.revision,
        "path": found.path,
        "bytes": found.bytes,
        "architecture": facts.architecture,
        "layers": facts.num_layers,
        "parameters": sum(prod(fact.shape) for fact in tensors.values()),
        "storedAs": sorted({fact.dtype for fact in tensors.values()}),
        "trainedLength": facts.max_position,
        "vocabulary": facts.vocab_size,
    }
    said = facts.quantization
    if said is not None:
        shown["quantization"] = {
            "format": said.format, "bits": said.bits, "groupSize": said.group_size, "symmetric": said.symmetric,
        }  # fmt: skip
    if output == "json":
        typer.echo(json.dumps(shown, indent=2))
        return
    shown |= {"bytes": f"{found.bytes} ({format_bytes(found.bytes)})", "storedAs": ", ".join(shown["storedAs"])}
    if said is not None:
        groups = f"groups of {said.group_size}" if said.group_size else "one scale a row"
        shown["quantization"] = f"{said.format}, {said.bits} bits, {groups}{', symmetric' if said.symmetric else ''}"
    for name, value in shown.items():
        typer.echo(printable(f"{name:<14}{value}"))
