"""Logs while they are written: lines in PostgreSQL until the work ends, then one text object in the bucket.

Each service that runs things has a table `<schema>.journal` and a notification channel `<schema>_journal`. A stream is
the id of a run or build. Lines can be followed from any replica, in order, and are there also when their writer died.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID

from libs.common.database import Connection, Notifications, Pool, is_connection_lost
from libs.common.models import LogEntry, rfc3339

_FLUSH_SECONDS = 0.1
_FLUSH_LINES = 250
_POLL_SECONDS = 2.0
_RETRY_SECONDS = 0.5
_PAGE_LINES = 250  # a page is worked on in one go, and nobody else is meanwhile
_MAX_LINE_CHARACTERS = 16 * 1024
_KEPT_BYTES = 256 * 1024

Holder: TypeAlias = UUID | str
"""Who writes, as the service's guard knows it."""


@dataclass(frozen=True, slots=True)
class JournalLimits:
    """How much one stream may hold; what comes after is counted and dropped."""

    max_bytes: int = 16 * 1024 * 1024


class Journal:
    """The journal of one service.

    `guard` is a query that finds a row, and locks it, while the holder `$2` may write the stream `$1`. With it, writers
    name who they are, and what somebody writes whose time is over is dropped. It can't come in between either: whoever
    takes the stream over waits until a batch that is being stored is there.
    """

    def __init__(
        self, pool: Pool, schema: str, notifications: Notifications, *, guard: str = "SELECT WHERE $2::uuid IS NULL"
    ) -> None:
        self._pool = pool
        self._channel = f"{schema}_journal"
        self._notifications = notifications
        table = f"{schema}.journal"
        # The schema is a constant of the service, never input.
        self._insert = (
            f"WITH held AS MATERIALIZED ({guard}), stored AS ("  # noqa: S608
            f"INSERT INTO {table} (stream, seq, at, source, level, message, fields) "
            "SELECT $1, given.* FROM held, "
            "unnest($3::bigint[], $4::timestamptz[], $5::text[], $6::text[], $7::text[], $8::jsonb[]) AS given "
            "ON CONFLICT DO NOTHING"  # an attempt whose answer was lost may have stored them already
            ") SELECT pg_notify($9, $1) FROM held"
        )
        self._select = (
            f"SELECT seq, at, source, level, message, fields FROM {table} "  # noqa: S608
            "WHERE stream = $1 AND seq > $2 ORDER BY seq LIMIT $3"
        )
        self._last = f"SELECT coalesce(max(seq), 0), clock_timestamp() FROM {table} WHERE stream = $1"  # noqa: S608
        self._delete = f"WITH gone AS (DELETE FROM {table} WHERE stream = $1) SELECT pg_notify($2, $1)"  # noqa: S608

    @asynccontextmanager
    async def writing(
        self,
        stream: str,
        limits: JournalLimits | None = None,
        *,
        holder: Holder | None = None,
        new_at: datetime | None = None,
    ) -> AsyncIterator["JournalWriter"]:
        """A writer that continues after the last line of `stream`; everything is stored when the context ends.

        Whoever knows that nobody has written it before says what time it is for PostgreSQL, and saves a look.
        """
        last, now = 0, new_at
        if now is None:
            async with self._pool.acquire() as connection:
                last, now = await connection.fetchrow(self._last, stream)  # type: ignore[misc]  # an aggregate has a row
        writer = JournalWriter(self, stream, last, now, limits or JournalLimits(), holder)
        task = asyncio.create_task(writer.flush_regularly())
        try:
            yield writer
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await writer.flush()

    async def store(self, stream: str, entries: list[LogEntry], *, holder: Holder | None = None) -> bool:
        """Store lines and wake whoever follows; False where `holder` may not write the stream (any more)."""
        async with self._pool.acquire() as connection:
            stored = await connection.fetchrow(
                self._insert,
                stream,
                holder,
                [entry.seq for entry in entries],
                [entry.at for entry in entries],
                [entry.source for entry in entries],
                [entry.level for entry in entries],
                [entry.message for entry in entries],
                [entry.fields for entry in entries],
                self._channel,
            )
        return stored is not None

    async def read(self, stream: str, *, after: int = 0, limit: int = _PAGE_LINES) -> list[LogEntry]:
        """Up to `limit` lines after line `after`."""
        async with self._pool.acquire() as connection:
            rows = await connection.fetch(self._select, stream, after, limit)
        return [LogEntry.model_validate(dict(row)) for row in rows]

    async def pages(self, stream: str, *, after: int = 0) -> AsyncIterator[list[LogEntry]]:
        """Every line that is there now, some at a time."""
        while entries := await self.read(stream, after=after):
            yield entries
            if len(entries) < _PAGE_LINES:
                return
            after = entries[-1].seq

    async def wake(self, connection: Connection, stream: str) -> None:
        """Wake the followers of `stream` when the transaction commits: something other than its lines changed."""
        await connection.execute("SELECT pg_notify($1, $2)", self._channel, stream)

    @asynccontextmanager
    async def changes(self, stream: str) -> AsyncIterator["Changes"]:
        """Wait for news of a stream: `async with journal.changes(id) as changes: … await changes.wait()`."""
        async with self._notifications.subscribed(stream) as event:
            yield Changes(event)

    async def discard(self, connection: Connection, stream: str) -> None:
        """Delete the lines of a stream, once they are in the bucket, and wake its followers as `wake` does."""
        await connection.execute(self._delete, stream, self._channel)


class Changes:
    """News of one stream."""

    def __init__(self, event: asyncio.Event) -> None:
        self._event = event

    async def wait(self) -> None:
        """Return when something may have changed: at a notification, or after two seconds in case one was lost."""
        try:
            async with asyncio.timeout(_POLL_SECONDS):
                await self._event.wait()
        except TimeoutError:
            return
        finally:
            self._event.clear()


class JournalWriter:
    """Collects lines and stores them in batches. Only one writer may write a stream at a time.

    Their times are those of PostgreSQL, which is asked once: writers on several machines agree about them, and whoever
    sets the clock of one does not change them. `continues`: the first lines are another writer's.
    """

    def __init__(
        self,
        journal: Journal,
        stream: str,
        last: int,
        now: datetime,
        limits: JournalLimits,
        holder: Holder | None = None,
    ) -> None:
        self._journal = journal
        self._stream = stream
        self._seq = last
        self.continues = last > 0
        self._begun_at, self._begun = now, time.monotonic()
        self._limits = limits
        self._holder = holder
        self._bytes = 0
        self._dropped = 0
        self._pending: list[LogEntry] = []
        self._whole: list[LogEntry] | None = [] if last == 0 else None
        self._full = asyncio.Event()
        self._flushing = asyncio.Lock()

    def write(self, source: str, message: str, *, level: str = "info", fields: dict[str, Any] | None = None) -> None:
        """Add a message, an entry for each of its lines: so the number of an entry is that of its line in the bucket.

        Over-long lines are cut, and lines beyond the limit of the stream are dropped and counted. Lines of the source
        `system` are the service's own, and always kept.
        """
        for line in message.replace("\x00", "\ufffd").split("\n"):
            self._write_line(source, line, level, fields)
            fields = None

    def dropped(self, lines: int) -> None:
        """Count lines as dropped that were not given to this writer, since they are too many."""
        self._dropped += lines

    @property
    def is_full(self) -> bool:
        """Whether all that comes is dropped but for lines of the source `system`."""
        return self._bytes > self._limits.max_bytes

    def _write_line(self, source: str, line: str, level: str, fields: dict[str, Any] | None) -> None:
        if len(line) > _MAX_LINE_CHARACTERS:
            line = line[:_MAX_LINE_CHARACTERS] + f"… ({len(line) - _MAX_LINE_CHARACTERS} more characters)"
        self._bytes += len(line) + 64 + (len(json.dumps(fields, ensure_ascii=False)) if fields else 0)
        if self.is_full and source != "system":
            self._dropped += 1
            return
        self._add(source, line, level, fields)

    def _add(self, source: str, message: str, level: str, fields: dict[str, Any] | None) -> None:
        self._seq += 1
        at = self._begun_at + timedelta(seconds=time.monotonic() - self._begun)
        entry = LogEntry(seq=self._seq, at=at, source=source, level=level, message=message, fields=fields)
        self._pending.append(entry)
        if self._whole is not None:
            self._whole.append(entry)
            if len(self._whole) > _PAGE_LINES or self._bytes > _KEPT_BYTES:
                self._whole = None
        if len(self._pending) >= _FLUSH_LINES:
            self._full.set()

    @property
    def whole(self) -> list[LogEntry] | None:
        """Every line of the stream, stored or not, where it was begun by this writer and is short; else None."""
        return None if self._dropped else self._whole

    async def flush(self) -> None:
        """Store what was collected; also the count of what was dropped, as a line of its own.

        What could not be stored because PostgreSQL was away is kept for the next flush.
        """
        async with self._flushing:
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                self._add("system", f"{dropped} more lines were dropped: the log is full.", "warning", None)
            while batch := self._pending[:_PAGE_LINES]:
                if await self._journal.store(self._stream, batch, holder=self._holder):
                    del self._pending[: len(batch)]
                else:
                    self.discard()

    def discard(self) -> None:
        """Forget what was not stored yet: the stream belongs to another writer now."""
        self._pending.clear()
        self._whole = None
        self._dropped = 0

    async def dismiss(self) -> None:
        """Store nothing more, once a batch that is on its way is there: the bucket has the lines."""
        async with self._flushing:
            self.discard()

    async def flush_regularly(self) -> None:
        """Store at least every tenth of a second, for as long as the task runs."""
        while True:
            try:
                async with asyncio.timeout(_FLUSH_SECONDS):
                    await self._full.wait()
            except TimeoutError:
                pass
            self._full.clear()
            if self._pending:
                try:
                    await asyncio.shield(self.flush())
                except Exception as error:
                    if not is_connection_lost(error):
                        raise
                    await asyncio.sleep(_RETRY_SECONDS)


def render_line(entry: LogEntry) -> str:
    """A line as text: time, source, level where it is not info, message, fields as JSON."""
    level = "" if entry.level == "info" else f" {entry.level.upper()}"
    fields = f" {json.dumps(entry.fields, ensure_ascii=False)}" if entry.fields else ""
    return f"{rfc3339(entry.at)} [{entry.source}]{level} {entry.message}{fields}\n"


def render_lines(entries: Iterable[LogEntry]) -> bytes:
    """Lines as UTF-8 text."""
    return "".join(render_line(entry) for entry in entries).encode("utf-8", "replace")
