"""Which scenarios run side by side: all but those that act on the whole cluster. A file's lock keeps them apart."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

#: Marks of scenarios that are alone on the cluster: others would meet their operator, cordoned node or missing CRDs.
ALONE = ("alone", "cluster_wide")


def is_alone(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(mark) for mark in ALONE)


def alone_last(items: list[pytest.Item]) -> list[pytest.Item]:
    """Scenarios in the order in which workers take them: those that run alone once, not between others."""
    return sorted(items, key=is_alone)


@contextmanager
def turn(folder: Path, alone: bool) -> Iterator[None]:
    """Waits until this scenario may run beside those that run now, in this process and in others.

    Args:
        folder: where the lock is, one for all workers.
        alone: no other may run meanwhile.
    """
    folder.mkdir(exist_ok=True)
    with (folder / "turns.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
