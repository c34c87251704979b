"""Structured logs: events with fields, as JSON lines or as lines for a person."""

import logging
import sys
from typing import Literal

import structlog


def configure_logging(*, log_format: Literal["json", "console"], level: str) -> None:
    """Send every event of this process to standard output; the library's own loggers join in at warning level."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
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
