"""Errors a human can act on: each names the field, the value found, and the fix."""

from collections.abc import Sequence
from typing import Any


def flag(value: bool) -> str:
    """A flag as manifests, JSON and options have it."""
    return "true" if value else "false"


class PlimsollError(Exception):
    """Base of every error shown to a user without a traceback.

    Args:
        message: what is wrong, in plain words.
        field: dotted path of the offending field or file (`spec.kvCache.ratio`), if there is one.
        value: the value found there, if showing it helps. Never a secret.
        fix: what to do about it.
    """

    def __init__(self, message: str, *, field: str | None = None, value: object = None, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.value = value
        self.fix = fix

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        shown = flag(self.value) if isinstance(self.value, bool) else repr(self.value)
        # What a stranger's file holds may be megabytes long.
        shown = shown if len(shown) <= 200 else shown[:197] + "..."
        found = f" (found {shown})" if self.value is not None else ""
        fix = f". {self.fix}" if self.fix else ""
        return f"{where}{self.message}{found}{fix}"


class SpecError(PlimsollError):
    """A manifest or an option is incoherent."""


class CheckpointError(PlimsollError):
    """A checkpoint cannot be read, or is not what it says."""


class SourceChangedError(CheckpointError):
    """The files of a source are not those that were inspected. `REASON` begins the text, for the operator to find."""

    REASON = "SourceChanged"

    def __str__(self) -> str:
        return f"{self.REASON}: {super().__str__()}"


class DoesNotFitError(PlimsollError):
    """The budget does not close; the message carries the sum and what would fit.

    Args:
        ways: what would fit, one change each, the smallest first.
    """

    def __init__(self, message: str, *, ways: Sequence[str] = (), **shown: Any) -> None:
        super().__init__(message, **shown)
        self.ways = tuple(ways)

    def __str__(self) -> str:
        ways = f"\nfits with: {', or '.join(self.ways)}" if self.ways else ""
        return f"{super().__str__()}{ways}"


class NotRunYetError(PlimsollError):
    """A coherent wish that the budget can size and this version cannot run."""


def message_of(error: BaseException) -> str:
    """The message for a user: a PlimsollError as it is, any other error with its class."""
    return str(error) if isinstance(error, PlimsollError) else f"{type(error).__name__}: {error}"
