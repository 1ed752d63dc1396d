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

    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from plimsoll.api.choice import check_choice
    from plimsoll.api.precision import Precision
    from plimsoll.checkpoint.shard_writer import shard_checkpoint
    from plimsoll.cli import screen

    check_choice(precision, ("auto", *get_args(Precision)), "--precision")
    chosen = None if precision == "auto" else cast(Precision, precision)
    columns = (screen.column("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=screen.console()) as bar:

        def show(done: int, total: int) -> None:
            # The bar appears with the first bytes, so that a refusal stands alone.
            task = bar.task_ids[0] if bar.task_ids else bar.add_task("Writing")
            bar.update(task, completed=done, total=total)

        shard_checkpoint(path, tensor, output, chosen, progress=show)
    typer.echo(printable(f"Wrote {output} for {tensor} ranks"))
