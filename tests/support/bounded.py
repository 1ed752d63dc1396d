"""Hostile input takes a bounded time: a test that hangs in pure Python fails instead."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from plimsoll.api.errors import PlimsollError


class TooLongError(BaseException):
    """The processor was busy beyond the bound. No handler of hostile input catches it."""


@contextlib.contextmanager
def bounded(seconds: float = 10.0) -> Iterator[None]:
    """Raises TooLongError inside once this process has used `seconds` of processor time. Main thread only."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TooLongError(f"more than {seconds} s of processor time")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def refusal(call: Callable[..., object], *given: object) -> PlimsollError | None:
    """How `call` refuses the hostile input that it is given, within bounded time; None where it takes it."""
    with bounded():
        try:
            call(*given)
        except PlimsollError as error:
            return error
    return None
