"""The `plimsoll` command. Each subcommand is a file of this folder that holds a function of the same name.

Only the file that is asked for gets imported: `plimsoll version` must not wait for torch, and `plimsoll --help`
imports the files but none of them imports anything heavy at its top.
"""

import contextlib
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence

import typer

from plimsoll.api.errors import PlimsollError
from plimsoll.api.printable import printable

#: In the order that `--help` shows them.
COMMANDS = (
    "plan", "up", "serve", "chat", "bench", "quantize", "eval", "convert", "shard", "crds", "inspect", "fetch",
    "version",
)  # fmt: skip
#: For containers, not for people: they work and `--help` does not list them.
HIDDEN = ("pod",)

#: Commands whose file is called otherwise: Python started in that folder must find its own `inspect`.
FILES = {"inspect": "inspection"}


def build(names: Sequence[str] = (*COMMANDS, *HIDDEN)) -> typer.Typer:
    """The application with these subcommands."""
    app = typer.Typer(
        name="plimsoll",
        help="Serve large language models up to the memory line and never past it.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name in names:
        module = importlib.import_module(f"plimsoll.cli.{FILES.get(name, name)}")
        app.command(name, hidden=name in HIDDEN)(getattr(module, name))
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 1 an error in plain words on stderr, 2 wrong usage, 130 interrupted."""
    if os.getpid() == 1:
        # The first process of a container is deaf to signals that it does not handle: it would outstay its deletion.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    known = (*COMMANDS, *HIDDEN)
    wanted = arguments[:1] if arguments and arguments[0] in known else known
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a character shows another one; that is no reason to fail.
        sys.stdout.reconfigure(errors="replace")
    try:
        try:
            build(wanted)(arguments, prog_name="plimsoll")
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except PlimsollError as error:
        typer.secho(printable(f"error: {error}"), fg=typer.colors.RED, err=True)
        raise SystemExit(1) from None
    except OSError as error:
        # The disk under standard output is full, say; a reader that has left needs no words.
        if not isinstance(error, BrokenPipeError):
            typer.secho(printable(f"error: {error.strerror or error}"), fg=typer.colors.RED, err=True)
        _discard_output()
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _discard_output() -> None:
    """What is still buffered cannot be written; without this Python would try again at its end, and complain."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _root() -> None:
    """Keeps `plimsoll NAME` a subcommand even when a single one is registered."""


if __name__ == "__main__":
    main()
