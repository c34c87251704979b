"""Logs of builds: lines in the journal while they are written, one object in the bucket afterwards."""

import asyncio
from collections.abc import AsyncGenerator

from libs.common.database import Pool
from libs.common.errors import NotFound
from libs.common.journal import Journal, render_line
from libs.common.models import BuildState
from libs.common.objects import ObjectMissing, ObjectStore, build_log_key
from services.builder import store
from services.builder.concurrency import in_thread

_CONTENT_TYPE = "text/plain; charset=utf-8"


class BuildLogs:
    """Reads logs from wherever they are, and moves them to the bucket. `stopping` ends those who follow."""

    def __init__(self, pool: Pool, journal: Journal, objects: ObjectStore, stopping: asyncio.Event) -> None:
        self._pool = pool
        self._journal = journal
        self._objects = objects
        self._stopping = stopping

    async def archive(self, build_id: str) -> None:
        """Move the log of a build that has ended to the bucket; raises ObjectStoreUnavailable and leaves it then.

        Nothing happens if it is there already: the journal of such a build is empty.
        """
        key = build_log_key(build_id)
        lines = [render_line(entry) async for entry in self._journal.read_all(build_id)]
        if (await self._build(build_id)).log_key is not None:
            return
        await in_thread(self._objects.put, key, "".join(lines).encode("utf-8", "replace"), content_type=_CONTENT_TYPE)
        async with self._pool.acquire() as connection, connection.transaction():
            await store.archive_log(connection, build_id, key)
            await self._journal.discard(connection, build_id)
            await self._journal.wake(connection, build_id)

    async def open(self, build_id: str, *, follow: bool) -> AsyncGenerator[bytes, None]:
        """The log of a build as UTF-8 text in pieces, as far as it is; with `follow` until the build has ended.

        Raises NotFound and ObjectStoreUnavailable before the first piece.
        """
        build = await self._build(build_id)
        if build.log_key is not None:
            return _at_once(await self._archived(build.log_key, 0))
        return self._pieces(build_id, follow=follow)

    async def _pieces(self, build_id: str, *, follow: bool) -> AsyncGenerator[bytes, None]:
        after = 0
        async with self._journal.changes(build_id) as changes:
            while True:
                # In this order: what a build has written before it ended is there when it says so.
                build = await self._build(build_id)
                while entries := await self._journal.read(build_id, after=after):
                    yield "".join(render_line(entry) for entry in entries).encode("utf-8", "replace")
                    after = entries[-1].seq
                if build.log_key is None and (await self._build(build_id)).log_key is not None:
                    continue  # moved while it was read: lines may have been missed
                if build.log_key is not None:
                    yield await self._archived(build.log_key, after)
                    return
                if not follow or self._stopping.is_set() or build.state in (BuildState.SUCCEEDED, BuildState.FAILED):
                    return
                await changes.wait()

    async def _archived(self, key: str, skip_lines: int) -> bytes:
        """What the object holds after its first lines: line n of it is entry n of the journal."""
        try:
            whole = await in_thread(self._read, key)
        except ObjectMissing:
            raise NotFound(f"the log {key} is not in the bucket any more.", kind="log-missing") from None
        start = 0
        for _ in range(skip_lines):
            start = whole.index(b"\n", start) + 1
        return whole[start:]

    def _read(self, key: str) -> bytes:
        with self._objects.read(key) as body:
            return b"".join(body)

    async def _build(self, build_id: str) -> store.BuildRow:
        async with self._pool.acquire() as connection:
            build = await store.get_build(connection, build_id)
        if build is None:
            raise NotFound(f"there is no build “{build_id}”.")
        return build


async def _at_once(whole: bytes) -> AsyncGenerator[bytes, None]:
    yield whole
