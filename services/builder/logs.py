"""Logs of builds: where each is, and how it gets to the bucket."""

import asyncio
from collections.abc import AsyncGenerator
from functools import partial

from libs.common.database import Pool
from libs.common.errors import NotFound
from libs.common.journal import Journal
from libs.common.log_archive import LogArchive, LogState
from libs.common.models import BuildState
from libs.common.objects import ObjectStore, build_log_key
from services.builder import store


class BuildLogs:
    """Reads logs from wherever they are, and moves them to the bucket. `stopping` ends those who follow."""

    def __init__(self, pool: Pool, journal: Journal, objects: ObjectStore, stopping: asyncio.Event) -> None:
        self._pool = pool
        self._journal = journal
        self._archive = LogArchive(journal, objects)
        self._stopping = stopping

    async def archive(self, build_id: str) -> None:
        """Move the log of a build that has ended to the bucket; raises ObjectStoreUnavailable and leaves it then.

        Nothing happens if it is there already: the journal of such a build is empty.
        """
        key = build_log_key(build_id)
        if not await self._archive.put(build_id, key, partial(self._state, build_id)):
            return
        async with self._pool.acquire() as connection, connection.transaction():
            await store.archive_log(connection, build_id, key)
            await self._journal.discard(connection, build_id)

    async def open(self, build_id: str, *, follow: bool) -> AsyncGenerator[bytes, None]:
        """The log of a build as UTF-8 text in pieces, as far as it is; with `follow` until the build has ended.

        Raises NotFound, Gone where it has expired, and ObjectStoreUnavailable before the first piece.
        """
        find_state = partial(self._state, build_id)
        await self._archive.require(await find_state())
        return self._archive.text(build_id, find_state, after=0, follow=follow, closing=self._stopping.is_set)

    async def _state(self, build_id: str) -> LogState:
        async with self._pool.acquire() as connection:
            build = await store.get_build(connection, build_id)
        if build is None:
            raise NotFound(f"there is no build “{build_id}”.")
        ended = build.state in (BuildState.SUCCEEDED, BuildState.FAILED)
        return LogState(build.log_key, ended=ended, expired_at=build.log_expired_at)
