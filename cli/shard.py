"""`plimsoll shard`: a checkpoint cut for the ranks of a tensor-parallel group."""

from pathlib import Path
from typing import Annotated

import typer

from plimsoll.api.printable import printable


def shard(
    path: Annotated[Path, typer.Argument(help="The Hugging Face folder.", metavar="PATH")],
    tensor: Annotated[int, typer.Option(help="Ranks to cut it for, 2 or more.", metavar="N")],
    output: Annotated[Path, typer.Option(help="The folder to write; it must not exist yet.", metavar="DIR")],
    precision: Annotated[
        str, typer.Option(help="Precision to serve it in: auto, bfloat16, float16, float32, w8a16 or w4a16.")
    ] = "auto",
) -> None:
    """Cut a checkpoint for a tensor-parallel group: each rank reads a file of its own from front to back."""
    from typing import cast, get_args

    from plimsoll.api.choice import check_choice
    from plimsoll.api.precision import Precision
    from plimsoll.checkpoint.shard_writer import shard_checkpoint
    from plimsoll.cli import screen

    check_choice(precision, ("auto", *get_args(Precision)), "--precision")
    chosen = None if precision == "auto" else cast(Precision, precision)
    with screen.writing() as show:
        shard_checkpoint(path, tensor, output, chosen, progress=show)
    typer.echo(printable(f"Wrote {output} for {tensor} ranks"))
