"""The terminal, where text of strangers stays text.

Model names, paths, chat lines and error texts may hold what Rich takes for markup (`[/]`, `[red]`) or for an emoji
(`:rocket:`). Consoles and columns made here read neither; styles are given as arguments.
"""

from rich.console import Console
from rich.progress import TextColumn


def console(*, stderr: bool = True) -> Console:
    """Progress and words for a human go to stderr; stdout is for answers."""
    return Console(stderr=stderr, markup=False, emoji=False)


def column(template: str) -> TextColumn:
    """A column of a progress bar, such as `{task.description}`."""
    return TextColumn(template, markup=False)
