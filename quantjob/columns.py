"""Which fields of a record, or columns of a table, hold the text."""

from collections.abc import Sequence

#: What a record may hold its text in, the first that it has; and what may be missing.
COLUMNS = (("text",), ("messages",), ("conversations",), ("prompt", "completion"), ("instruction", "input", "output"))
OPTIONAL = ("input",)


def columns_of(names: Sequence[str]) -> list[str]:
    """Which of them hold the text; empty for none."""
    for wanted in COLUMNS:
        if set(wanted) - set(OPTIONAL) <= set(names):
            return [name for name in wanted if name in names]
    return []
