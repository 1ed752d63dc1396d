"""`plimsoll version`: what is installed, for bug reports."""

import json
import platform
from importlib import metadata
from typing import Annotated

import typer

import plimsoll

#: Packages whose release changes results or speed.
RELEVANT = ("torch", "transformers", "tokenizers", "safetensors", "gguf", "pydantic")


def versions() -> dict[str, str | None]:
    """Releases by name, from installed metadata (nothing is imported); None for what is not installed."""
    found: dict[str, str | None] = {"plimsoll": plimsoll.__version__, "python": platform.python_version()}
    for name in RELEVANT:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    found["platform"] = platform.platform()
    return found


def version(
    output: Annotated[str, typer.Option("-o", "--output", help="text or json.", metavar="FORMAT")] = "text",
) -> None:
    """Print the versions of Plimsoll and of what it stands on."""
    if output not in ("text", "json"):
        raise typer.BadParameter(f"must be one of text, json (found {output!r})", param_hint="--output")
    if output == "json":
        typer.echo(json.dumps(versions(), indent=2))
        return
    for name, release in versions().items():
        typer.echo(f"{name:<13}{release or 'not installed'}")
