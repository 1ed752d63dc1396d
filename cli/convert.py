"""`plimsoll convert`: a GGUF file as a Hugging Face folder."""

from pathlib import Path
from typing import Annotated

import typer

from plimsoll.api.printable import printable


def convert(
    gguf: Annotated[Path, typer.Argument(help="The GGUF file.", metavar="GGUF")],
    out: Annotated[Path, typer.Argument(help="The folder to write; it must not exist yet.", metavar="OUT")],
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.", metavar="DTYPE")] = "bfloat16",
    max_shard_size: Annotated[str, typer.Option(help="Largest file of weights, e.g. 5Gi.", metavar="SIZE")] = "5Gi",
) -> None:
    """Write a GGUF file as a Hugging Face folder: configuration, tokenizer, chat template and safetensors."""
    from plimsoll.api.quantity import byte_option
    from plimsoll.checkpoint.convert import convert_gguf
    from plimsoll.cli import screen

    shard_bytes = byte_option(max_shard_size, "--max-shard-size")
    with screen.writing() as show:
        convert_gguf(gguf, out, dtype, max_shard_bytes=shard_bytes, progress=show)
    typer.echo(printable(f"Wrote {out}"))
