"""What a job says over its event channel, read with distrust: whatever runs in the job may write to it."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

from services.runner.values import UnstorableValue, clean_text, parse_json, require_storable, storable_fields

_LEVELS = {"debug", "info", "warning", "error"}
_MAX_NAME = 100
_MAX_MESSAGE = 4000
_MAX_LOG_MESSAGE = 64 * 1024
_MAX_PROGRESS_MESSAGE = 1000

EVENT_OVERHEAD_BYTES = 1024 * 1024
"""What an event may be longer than the largest result: room for escapes, and for log events."""


@dataclass(frozen=True, slots=True)
class Returned:
    """The handler returned this."""

    value: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """The handler, or the harness on its behalf, failed."""

    name: str
    message: str


Verdict = Returned | Failed


class EventSink(Protocol):
    """Who wants to know."""

    def ready(self) -> None:
        """The interpreter waits for its control line."""

    def started(self) -> None:
        """The handler is being called."""

    def log(self, level: str, message: str, fields: dict[str, Any] | None) -> None:
        """A line for the log."""

    def progress(self, fraction: float | None, message: str | None) -> None:
        """How far the handler is."""

    def ended(self, verdict: Verdict) -> None:
        """How it ended. More may be said afterwards, and counts for nothing."""


def dispatch(line: bytes, sink: EventSink, *, max_result_bytes: int) -> None:
    """Tell `sink` what one line of the channel means. Lines that mean nothing become lines of the log."""
    try:
        event = parse_json(line)
    except UnstorableValue:
        event = None
    match event:
        case {"type": "ready"}:
            sink.ready()
        case {"type": "started"}:
            sink.started()
        case {"type": "log", "message": str(message)}:
            level = event.get("level")
            sink.log(
                level if level in _LEVELS else "info",
                clean_text(message, _MAX_LOG_MESSAGE),
                storable_fields(event.get("fields")),
            )
        case {"type": "update", "fields": dict(fields)}:
            sink.log("info", "update", storable_fields(fields))
        case {"type": "progress"}:
            sink.progress(_fraction(event.get("fraction")), _text(event.get("message"), _MAX_PROGRESS_MESSAGE))
        case {"type": "result"}:
            sink.ended(_result(event.get("value"), max_result_bytes))
        case {"type": "error"}:
            stack = event.get("stack")
            if isinstance(stack, str):
                sink.log("error", clean_text(stack, _MAX_LOG_MESSAGE), None)
            name = _text(event.get("name"), _MAX_NAME) or "Error"
            reason = _text(event.get("message"), _MAX_MESSAGE) or "The handler failed and did not say why."
            sink.ended(Failed(name, reason))
        case _ if line.startswith(b'{"type":"result"'):
            sink.ended(_unreadable_result(line, max_result_bytes))
        case _:
            sink.log("warning", f"an event of {len(line)} bytes was not understood and dropped", None)


def _result(value: Any, max_bytes: int) -> Verdict:
    try:
        size = require_storable(value)
    except UnstorableValue as error:
        return Failed("result_not_json", f"The handler returned what can't be stored: {error}.")
    if size > max_bytes:
        return Failed("result_too_large", f"The result is {size} bytes as JSON; the limit is {max_bytes}.")
    return Returned(value)


def _unreadable_result(line: bytes, max_bytes: int) -> Failed:
    if len(line) > max_bytes:
        return Failed("result_too_large", f"The result is larger than {max_bytes} bytes, which is the limit.")
    return Failed("result_not_json", "The handler returned what is not JSON.")


def _fraction(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return min(1.0, max(0.0, float(value)))


def _text(value: Any, limit: int) -> str | None:
    return clean_text(value, limit) if isinstance(value, str) else None
