"""Structured logs: events with fields, as JSON lines or as lines for a person."""

import logging
import sys
from typing import Literal

import structlog


def configure_logging(*, service: str, log_format: Literal["json", "console"], level: str) -> None:
    """Send every event of this process to standard output; the library's own loggers join in at warning level."""
    timestamps = structlog.processors.TimeStamper(fmt="iso", utc=True)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        timestamps,
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stdout.isatty(), pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
        )
    )
    if log_format == "console":
        shared.remove(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        cache_logger_on_first_use=True,
    )
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
    logging.getLogger(service).setLevel(getattr(logging, level.upper()))


def get_logger(service: str) -> structlog.typing.FilteringBoundLogger:
    """The logger of a service: `log.info("bundle_replaced", slug=…, version=…)`."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(service)
    return logger
