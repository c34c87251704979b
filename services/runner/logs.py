"""The logs of runs: lines in the journal while a run goes on, one object in the bucket afterwards."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from libs.common.database import Pool
from libs.common.errors import NotFound
from libs.common.journal import Journal, JournalWriter, render_line, render_lines
from libs.common.log import get_logger
from libs.common.models import LogEntry
from libs.common.objects import ObjectStore, ObjectStoreUnavailable, run_log_key
from services.runner import store
from services.runner.lifecycle import no_such_run
from services.runner.store import RunRecord

_CONTENT_TYPE = "text/plain; charset=utf-8"
_SETTLED_SECONDS = 60.0
_ARCHIVE_LOCK = 7103_0001
_log = get_logger("runner")


class RunLogs:
    """Reads and archives logs. Line n of a log is entry n of its journal."""

    def __init__(self, pool: Pool, journal: Journal, objects: ObjectStore) -> None:
        self._pool = pool
        self._journal = journal
        self._objects = objects

    async def archive(self, run_id: str) -> str | None:
        """Put what the journal has into the bucket; the object's key, or None where that can't be done now."""
        entries = [entry async for entry in self._journal.read_all(run_id)]
        if not entries:
            return None
        key = run_log_key(run_id)
        try:
            await asyncio.to_thread(lambda: self._objects.put(key, render_lines(entries), content_type=_CONTENT_TYPE))
        except ObjectStoreUnavailable as error:
            _log.warning("log_not_archived", run=run_id, error=error.message)
            return None
        return key

    async def text(self, run_id: str, *, after: int, follow: bool, closing: Callable[[], bool]) -> AsyncIterator[bytes]:
        """The log from behind line `after` on; with `follow` until the run has ended, or the service is `closing`."""
        async with self._journal.changes(run_id) as changes:
            while True:
                run = await self._get(run_id)
                if run.log_key is not None:
                    async for chunk in self._archived(run.log_key, after):
                        yield chunk
                    return
                async for entries in self._batches(run_id, after):
                    after = entries[-1].seq
                    yield "".join(map(render_line, entries)).encode("utf-8", "replace")
                if not follow or run.state.final or closing():
                    return
                await changes.wait()

    async def require(self, run_id: str) -> None:
        """Raise NotFound unless there is such a run, and its log can be read."""
        run = await self._get(run_id)
        if run.log_key is not None and await asyncio.to_thread(self._objects.head, run.log_key) is None:
            raise NotFound(f"the log of run {run_id} is gone from the bucket.", kind="log-missing")

    async def archive_leftovers(self) -> None:
        """Archive the logs that were left in the journal, because the bucket or the runner was away."""
        async with self._pool.acquire() as connection:
            # One runner at a time: a log that another is just discarding would be read in part.
            if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _ARCHIVE_LOCK):
                return
            try:
                for left in await store.left_logs(connection, older_than_seconds=_SETTLED_SECONDS):
                    key = None if left.archived else await self.archive(left.run_id)
                    if left.archived or key is not None:
                        async with connection.transaction():
                            if key is not None:
                                await store.set_log_key(connection, left.run_id, key)
                            await self._journal.discard(connection, left.run_id)
            finally:
                await connection.execute("SELECT pg_advisory_unlock($1)", _ARCHIVE_LOCK)

    async def _get(self, run_id: str) -> RunRecord:
        async with self._pool.acquire() as connection:
            run = await store.get_run(connection, run_id)
        if run is None:
            raise no_such_run(run_id)
        return run

    async def _batches(self, run_id: str, after: int) -> AsyncIterator[list[LogEntry]]:
        while entries := await self._journal.read(run_id, after=after):
            yield entries
            after = entries[-1].seq

    async def _archived(self, key: str, after: int) -> AsyncIterator[bytes]:
        body = await asyncio.to_thread(self._objects.read, key)
        try:
            chunks = iter(body)
            while chunk := await asyncio.to_thread(next, chunks, None):
                if after:
                    chunk, after = _skip_lines(chunk, after)
                if chunk:
                    yield chunk
        finally:
            await asyncio.to_thread(body.close)


def write_lines(
    log: JournalWriter, source: str, text: str, *, level: str = "info", fields: dict[str, Any] | None = None
) -> None:
    """Write a text to a run's log, an entry a line: so the number of an entry is that of its line in the archive."""
    for line in text.split("\n"):
        log.write(source, line, level=level, fields=fields)
        fields = None


def _skip_lines(chunk: bytes, lines: int) -> tuple[bytes, int]:
    """What is behind the first `lines` lines of `chunk`, and how many are still to be skipped."""
    position = 0
    while lines:
        end = chunk.find(b"\n", position)
        if end < 0:
            return b"", lines
        position = end + 1
        lines -= 1
    return chunk[position:], 0
