"""The terminal, where text of strangers stays text.

Model names, paths, chat lines and error texts may hold what Rich takes for markup (`[/]`, `[red]`) or for an emoji
(`:rocket:`), and what a terminal takes for commands. Consoles and columns made here read none of it; styles are given
as arguments.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.segment import Segment

from plimsoll.api.printable import printable


class Screen(Console):
    """Shows what it is given without control characters; those that Rich writes itself remain."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def console(*, stderr: bool = True) -> Console:
    """Progress and words for a human go to stderr; stdout is for answers."""
    return Screen(stderr=stderr, markup=False, emoji=False)


def column(template: str) -> TextColumn:
    """A column of a progress bar, such as `{task.description}`."""
    return TextColumn(template, markup=False)


def transfer_bar(*, transient: bool = False) -> Progress:
    """A bar on stderr for bytes: how many, how fast and how long yet."""
    columns = (column("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console(), transient=transient)


@contextmanager
def writing() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr for bytes that are written; what it yields takes (bytes written, bytes in all)."""
    with transfer_bar() as bar:

        def show(done: int, total: int) -> None:
            # The bar appears with the first bytes, so that a refusal stands alone.
            task = bar.task_ids[0] if bar.task_ids else bar.add_task("Writing")
            bar.update(task, completed=done, total=total)

        yield show
