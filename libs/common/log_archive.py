"""Logs of work, read from wherever they are: the journal while they are written, one object in the bucket afterwards.

Line n of the object is entry n of the journal, so a reader can begin in one and go on in the other.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from libs.common.errors import NotFound
from libs.common.journal import Journal, JournalWriter, render_lines
from libs.common.object_errors import ObjectMissing
from libs.common.objects import ObjectStore
from libs.common.retention import gone

_CONTENT_TYPE = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class LogState:
    """Where a log is. `key` is that of its object, once there is one; `ended`: nothing more will be written.

    `expired_at`: since when it is gone, because it was kept long enough.
    """

    key: str | None
    ended: bool
    expired_at: datetime | None = None


FindState = Callable[[], Awaitable[LogState]]


class LogArchive:
    """Moves logs to the bucket, and reads them."""

    def __init__(self, journal: Journal, objects: ObjectStore) -> None:
        self._journal = journal
        self._objects = objects

    async def put(self, stream: str, key: str, find_state: FindState) -> bool:
        """Write what the journal has to the bucket; False where it has nothing. Raises ObjectStoreUnavailable.

        The journal is left as it is: its lines go in the transaction that writes the key down.
        """
        pages = [await asyncio.to_thread(render_lines, entries) async for entries in self._journal.pages(stream)]
        if not pages or (await find_state()).key is not None:  # moved while it was read: lines may be missing
            return False
        await self._write(key, b"".join(pages))
        return True

    async def put_whole(self, key: str, writer: JournalWriter) -> bool:
        """Write a short log to the bucket from the memory of its only writer; False where that has not all of it.

        What the writer has not stored yet need not be any more. Raises ObjectStoreUnavailable.
        """
        entries = writer.whole
        if not entries:
            return False
        await self._write(key, render_lines(entries))
        await writer.dismiss()
        return True

    async def _write(self, key: str, text: bytes) -> None:
        await asyncio.to_thread(self._objects.put, key, text, content_type=_CONTENT_TYPE)

    async def require(self, state: LogState) -> None:
        """Raise Gone when the log has expired, NotFound when the bucket has lost it, or ObjectStoreUnavailable."""
        if state.expired_at is not None:
            raise gone("the log", state.expired_at)
        if state.key is not None and await asyncio.to_thread(self._objects.head, state.key) is None:
            raise _missing(state.key)

    async def text(
        self, stream: str, find_state: FindState, *, after: int, follow: bool, closing: Callable[[], bool]
    ) -> AsyncGenerator[bytes, None]:
        """The log as UTF-8 text from behind line `after` on; with `follow` until it has ended, or `closing` says so."""
        async with self._journal.changes(stream) as changes:
            while True:
                # In this order: what was written before the end is there when the state says that it has ended.
                state = await find_state()
                while state.key is None and (entries := await self._journal.read(stream, after=after)):
                    yield render_lines(entries)
                    after = entries[-1].seq
                if state.key is None:
                    state_now = await find_state()
                    if state_now.key is not None:
                        state = state_now  # moved while it was read: lines may have been missed
                if state.key is not None:
                    async for piece in self._archived(state.key, after):
                        yield piece
                    return
                if not follow or state.ended or closing():
                    return
                await changes.wait()

    async def _archived(self, key: str, skip_lines: int) -> AsyncGenerator[bytes, None]:
        try:
            body = await asyncio.to_thread(self._objects.read, key)
        except ObjectMissing:
            raise _missing(key) from None
        try:
            chunks = iter(body)
            while chunk := await asyncio.to_thread(next, chunks, None):
                if skip_lines:
                    chunk, skip_lines = _without_lines(chunk, skip_lines)
                if chunk:
                    yield chunk
        finally:
            await asyncio.to_thread(body.close)


def _missing(key: str) -> NotFound:
    return NotFound(f"the log {key} is not in the bucket any more.", kind="log-missing")


def _without_lines(chunk: bytes, lines: int) -> tuple[bytes, int]:
    """What is behind the first `lines` lines of `chunk`, and how many are still to be skipped."""
    position = 0
    while lines:
        end = chunk.find(b"\n", position)
        if end < 0:
            return b"", lines
        position = end + 1
        lines -= 1
    return chunk[position:], 0
