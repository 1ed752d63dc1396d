"""Logs on the standard error that a process has at the moment, not on the one that it had when logging began."""

import logging
import sys
from typing import TextIO


class StderrHandler(logging.StreamHandler[TextIO]):
    """Looks up `sys.stderr` for every record: a stream that was replaced and closed meanwhile is not written to."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr
