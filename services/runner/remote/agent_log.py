"""The log of a run as its agent writes it: what it says is kept within the limit, whatever it calls its lines."""

import asyncio

from libs.common.journal import JournalWriter
from services.runner.remote.messages import Line, Lines, NotUnderstood
from services.runner.values import UnstorableValue, clean_text, parse_json, storable_fields

_SYSTEM_LINES = 100
_SYSTEM_CHARACTERS = 4000


class AgentLog:
    """Writes to the log of the run."""

    def __init__(self, log: JournalWriter) -> None:
        self._log = log
        self._system_lines = 0

    async def write(self, lines: Lines) -> None:
        """Add lines; nothing is made of those that the log has no room for. NotUnderstood."""
        self._log.dropped(lines.dropped)
        for line in lines.lines:
            source = self._source_of(line)
            if source != "system" and self._log.is_full:
                self._log.dropped(1)
                continue
            fields = None
            if line.fields is not None:
                await asyncio.sleep(0)  # others come between: fields are large where somebody wants to keep us busy
                fields = _fields_of(line.fields)
            self._log.write(source, clean_text(line.message), level=line.level, fields=fields)

    def _source_of(self, line: Line) -> str:
        """Lines of the system are always kept, so there may not be many of them."""
        if line.source != "system":
            return line.source
        if line.fields is not None:
            raise NotUnderstood("a line of the system has fields")
        self._system_lines += 1
        short = self._system_lines <= _SYSTEM_LINES and len(line.message) <= _SYSTEM_CHARACTERS
        return "system" if short else "logger"


def _fields_of(text: str) -> dict[str, object] | None:
    try:
        return storable_fields(parse_json(text))
    except UnstorableValue:
        raise NotUnderstood("the fields of a line are not JSON") from None
