"""Logs as JSON lines on stderr: ours, and the libraries' warnings in the same shape."""

import logging

import structlog

from plimsoll.api.printable import printable
from plimsoll.api.stderr_handler import StderrHandler


def configure(level: str = "INFO") -> None:
    """Call once, first."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = StderrHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(ensure_ascii=False),
                lambda _logger, _level, line: printable(str(line)),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for noisy in ("urllib3", "asyncio", "aiohttp", "kubernetes"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
