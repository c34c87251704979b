"""Structured logs: events with fields, as JSON lines or as lines for a person."""

import logging
import sys
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as quoted
from typing import Literal

import structlog

_request_lines: structlog.WriteLogger | None = None
"""Where lines of requests are written without structlog; None until they are JSON and wanted."""


def configure_logging(*, log_format: Literal["json", "console"], level: str) -> None:
    """Send every event of this process to standard output; the library's own loggers join in at warning level."""
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor
    if log_format == "json":
        shared.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stdout.isatty(), pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
        )
    # Straight to the stream: the standard library's loggers would cost more than the rest of the line.
    structlog.configure(
        processors=[*shared, renderer],
        logger_factory=structlog.WriteLoggerFactory(sys.stdout),
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        cache_logger_on_first_use=True,
    )
    global _request_lines  # what structlog keeps is as global
    is_wanted = log_format == "json" and logging.getLevelNamesMapping()[level.upper()] <= logging.INFO
    _request_lines = structlog.WriteLogger(sys.stdout) if is_wanted else None
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)


def get_logger(service: str) -> structlog.typing.FilteringBoundLogger:
    """The logger of a service: `log.info("bundle_replaced", slug=…, version=…)`."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(service)
    return logger


def log_request(
    log: structlog.typing.FilteringBoundLogger,
    *,
    method: str,
    path: str,
    status: int,
    ms: float,
    actor: str | None,
    request_id: str,
) -> None:
    """Log that a request was answered, in so many milliseconds.

    There is such a line for each, and what structlog does for one takes as long as a tenth of a small request.
    """
    if _request_lines is None:
        log.info("request", method=method, path=path, status=status, ms=ms, actor=actor, request_id=request_id)
        return
    _request_lines.msg(
        f'{{"method": {quoted(method)}, "path": {quoted(path)}, "status": {status}, "ms": {ms}, '
        f'"actor": {"null" if actor is None else quoted(actor)}, "request_id": {quoted(request_id)}, '
        f'"event": "request", "level": "info", "timestamp": "{datetime.now(UTC).isoformat()[:-6]}Z"}}'
    )
