"""Why a job ends without an output, by the one word that status and programs have for it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plimsoll.api.errors import CheckpointError, DoesNotFitError, PlimsollError, SpecError


class DiskFullError(CheckpointError):
    """There is no room left where the output is made. What is done stays."""


class OutputError(CheckpointError):
    """The output folder cannot be written."""


class OutputTakenError(SpecError):
    """The output folder holds something else."""


class BusyError(PlimsollError):
    """Another process works in the output folder: worth trying again."""


def reason_of(error: PlimsollError) -> str:
    """CamelCase, one word."""
    for kind, reason in (
        (DiskFullError, "DiskFull"), (OutputError, "OutputNotWritable"), (OutputTakenError, "OutputTaken"),
        (BusyError, "OutputBusy"), (DoesNotFitError, "DoesNotFit"), (SpecError, "InvalidOption"),
        (CheckpointError, "SourceUnreadable"),
    ):  # fmt: skip
        if isinstance(error, kind):
            return reason
    return "Failed"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raises DiskFullError or OutputError for what the system says of `folder` meanwhile."""
    try:
        yield
    except OSError as error:
        where = str(error.filename or folder)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                "cannot be written: the disk is full", field=where,
                fix="Make room there and run it again: it goes on from the layer it had reached",
            ) from error  # fmt: skip
        raise OutputError(
            f"cannot be written: {error.strerror or error}", field=where, fix="Give it a folder that can be written"
        ) from error
