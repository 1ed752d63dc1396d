"""Why a job ends without an output, by the one word that status and programs have for it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plimsoll.api.errors import CheckpointError, DoesNotFitError, PlimsollError, SourceChangedError, SpecError


class DiskFullError(CheckpointError):
    """There is no room left where the output is made, or not for a file of that size. What is done stays."""


class OutputError(CheckpointError):
    """The output folder cannot be written."""


class OutputTakenError(SpecError):
    """The output folder holds something else."""


class BusyError(PlimsollError):
    """Another process works in the output folder: worth trying again."""


class WorkersLostError(PlimsollError):
    """No process that computes is left: worth trying again, from the layer that was reached."""


def reason_of(error: PlimsollError) -> str:
    """CamelCase, one word."""
    for kind, reason in (
        (DiskFullError, "DiskFull"), (OutputError, "OutputNotWritable"), (OutputTakenError, "OutputTaken"),
        (BusyError, "OutputBusy"), (WorkersLostError, "Crashed"), (DoesNotFitError, "DoesNotFit"),
        (SpecError, "InvalidOption"),
        (SourceChangedError, SourceChangedError.REASON), (CheckpointError, "SourceUnreadable"),
    ):  # fmt: skip
        if isinstance(error, kind):
            return reason
    return "Failed"


def kind_of(error: OSError) -> type[CheckpointError]:
    """What it is to find `error` while writing."""
    return DiskFullError if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else OutputError


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raises DiskFullError or OutputError for what the system says of `folder` meanwhile."""
    try:
        yield
    except OSError as error:
        kind, why = kind_of(error), error.strerror or str(error)
        fix = "Give it a folder that can be written"
        if kind is DiskFullError:
            limited = error.errno == errno.EFBIG
            why = "a file there may not be that large" if limited else "the disk is full"
            cure = "Raise that limit (ulimit -f)" if limited else "Make room there"
            fix = f"{cure} and run it again: it goes on from the layer it had reached"
        raise kind(f"cannot be written: {why}", field=str(error.filename or folder), fix=fix) from error


def damaged(path: Path, work: Path, what: str) -> CheckpointError:
    """Of a file that earlier work in the folder `work` left, and that is not as it was left."""
    return CheckpointError(what, field=str(path), fix=f"Remove {work} and start again")
