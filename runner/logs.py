"""Logging to standard error with structlog, as text or as JSON lines; loggers of libraries included."""

from __future__ import annotations

import logging
import sys
from typing import Any

from config.load import colours_wanted
from config.settings import LogSettings
from protocol.model import KEY, KEY_PREFIX
from runner import without

with without("rich", "better_exceptions"):  # for tracebacks with the values of variables, which are not logged here
    import structlog
    from structlog.tracebacks import ExceptionDictTransformer


def configure_logging(settings: LogSettings) -> None:
    """Set up logging for the process. Standard output belongs to the commands."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Both renderers show the values of variables in tracebacks by default; they may be secrets.
    last: list[Any]
    if settings.format == "json":
        tracebacks = structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
        last = [tracebacks, structlog.processors.JSONRenderer()]
    else:
        plain = structlog.dev.plain_traceback
        colours = sys.stderr.isatty() and colours_wanted()
        last = [structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=plain)]
    last.append(_without_keys)
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[_ToStructlog()], force=True)


def _without_keys(_logger: Any, _method: str, line: str) -> str:
    """Return a line without API keys: a message or traceback could quote a request."""
    return KEY.sub(rf"{KEY_PREFIX}\1_***", line) if KEY_PREFIX in line else line


class _ToStructlog(logging.Handler):
    """Passes the log records of libraries to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = structlog.get_logger(record.name)
        logger.log(record.levelno, record.getMessage(), exc_info=record.exc_info or None)
