"""A green run is quiet: no test leaves its logging to the next one, and a log line that fails is a test that fails."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import structlog


@contextmanager
def own_logging() -> Iterator[list[str]]:
    """The process's logging is what it was again afterwards: commands that run in a test's process set it up.

    Yields what could not be logged meanwhile, for example because its stream was closed; nothing of it is printed.
    """
    root, failed = logging.getLogger(), list[str]()
    handlers, level, handle = [*root.handlers], root.level, logging.Handler.handleError
    configured = structlog.get_config() if structlog.is_configured() else None

    def note(handler: logging.Handler, record: logging.LogRecord) -> None:
        failed.append(f"{record.name}: {record.msg}: {type(handler).__name__}")

    logging.Handler.handleError = note  # type: ignore[method-assign]
    try:
        yield failed
    finally:
        logging.Handler.handleError = handle  # type: ignore[method-assign]
        root.handlers[:] = handlers
        root.setLevel(level)
        if configured is None:
            structlog.reset_defaults()
        else:
            structlog.configure(**configured)
