"""The logs of runs: where each is, and how it gets to the bucket."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from uuid import UUID

from libs.common.database import Pool, session_lock
from libs.common.journal import Journal, JournalWriter
from libs.common.log import get_logger
from libs.common.log_archive import LogArchive, LogState
from libs.common.object_errors import ObjectStoreUnavailable
from libs.common.objects import ObjectStore, run_log_prefix
from services.runner import log_store, store
from services.runner.lifecycle import no_such_run
from services.runner.store import Assignment

_SETTLED_SECONDS = 60.0
_ARCHIVE_LOCK = "archive the logs of runs"
_log = get_logger("runner")


class RunLogs:
    """Reads and archives logs. Line n of a log is entry n of its journal."""

    def __init__(self, pool: Pool, journal: Journal, objects: ObjectStore) -> None:
        self._pool = pool
        self._journal = journal
        self._objects = objects
        self._archive = LogArchive(journal, objects)

    async def archive_written(self, run: Assignment, log: JournalWriter) -> str | None:
        """The same as `archive` for the holder of a lease, who has written the end of the log."""
        key = _log_key(run.id, run.lease)
        try:
            if await self._archive.put_whole(key, log):
                return key
        except ObjectStoreUnavailable as error:
            _log.warning("log_not_archived", run=run.id, error=error.message)
            await log.flush()
            return None
        await log.flush()
        return await self.archive(run.id, run.lease)

    async def archive(self, run_id: str, lease: UUID | None) -> str | None:
        """Put what the journal has into the bucket; the object's key, or None where that can't be done now.

        The key is that of the lease's holder alone: it becomes the run's log when the holder ends the run. None is for
        a run that has ended.
        """
        key = _log_key(run_id, lease)
        try:
            moved = await self._archive.put(run_id, key, partial(self._state, run_id))
        except ObjectStoreUnavailable as error:
            _log.warning("log_not_archived", run=run_id, error=error.message)
            return None
        return key if moved else None

    async def discard(self, run_id: str, wanted: Callable[[str], bool]) -> None:
        """Remove the `wanted` keys among those of a run: what writers put there that did not end it."""
        try:
            await asyncio.to_thread(self._remove, run_id, wanted)
        except ObjectStoreUnavailable as error:
            _log.warning("logs_not_removed", run=run_id, error=error.message)

    async def require(self, run_id: str) -> None:
        """Raise NotFound unless there is such a run, and its log can be read; Gone where that has expired."""
        await self._archive.require(await self._state(run_id))

    def text(self, run_id: str, *, after: int, follow: bool, closing: Callable[[], bool]) -> AsyncIterator[bytes]:
        """The log from behind line `after` on; with `follow` until the run has ended, or the service is `closing`."""
        return self._archive.text(run_id, partial(self._state, run_id), after=after, follow=follow, closing=closing)

    async def archive_leftovers(self) -> None:
        """Archive the logs that were left in the journal, because the bucket or the runner was away."""
        async with self._pool.acquire() as connection, session_lock(connection, _ARCHIVE_LOCK, wait=False) as mine:
            if not mine:  # one runner at a time: a log that another is just discarding would be read in part
                return
            for left in await log_store.left_logs(connection, older_than_seconds=_SETTLED_SECONDS):
                key = None if left.archived else await self.archive(left.run_id, None)
                if left.archived or key is not None:
                    async with connection.transaction():
                        if key is not None:
                            await log_store.set_log_key(connection, left.run_id, key)
                        await self._journal.discard(connection, left.run_id)

    async def sweep(self) -> None:
        """Remove what was archived under leases that did not end their run, by holders that could not remove it."""
        async with self._pool.acquire() as connection:
            abandoned = await log_store.abandoned_logs(connection, older_than_seconds=_SETTLED_SECONDS)
        for run_id, lease in abandoned:
            await asyncio.to_thread(self._objects.delete, _log_key(run_id, lease))
            async with self._pool.acquire() as connection:
                await log_store.forget_log(connection, run_id, lease)

    def _remove(self, run_id: str, wanted: Callable[[str], bool]) -> None:
        for key in list(self._objects.list(run_log_prefix(run_id))):
            if wanted(key):
                self._objects.delete(key)

    async def _state(self, run_id: str) -> LogState:
        async with self._pool.acquire() as connection:
            run = await store.get_run(connection, run_id)
        if run is None:
            raise no_such_run(run_id)
        return LogState(run.log_key, ended=run.state.final, expired_at=run.expired_at)


def _log_key(run_id: str, lease: UUID | None) -> str:
    return f"{run_log_prefix(run_id)}{'ended' if lease is None else lease}.log"
