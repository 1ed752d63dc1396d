"""JSON lines on stderr, ours and the libraries' alike."""

import logging

import structlog

from plimsoll.api.choice import check_choice
from plimsoll.api.printable import printable
from plimsoll.api.stderr_handler import StderrHandler
from plimsoll.runtime.server.log_quota import LineQuota

LEVELS = ("debug", "info", "warning", "error")


def configure(level: str) -> None:
    """`level` is one of `LEVELS`. Raises SpecError, naming the option, for another."""
    check_choice(level, LEVELS, "--log-level")
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = StderrHandler()
    handler.addFilter(LineQuota())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
                lambda _logger, _level, line: printable(str(line)),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # httpx writes every URL it fetches at info, uvicorn when it starts and stops; we say what matters ourselves.
    for name in ("httpx", "uvicorn.error"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
