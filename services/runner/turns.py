"""Whose turn it is, where only so many runs may go at a time; and how long the queue may become."""

import time
from collections.abc import Iterable

from libs.common.database import Connection, Pool
from libs.common.errors import TooManyRequests
from libs.common.queue import prune_queue_log
from services.runner import turn_store
from services.runner.persistence import best_effort

_LOOK_SECONDS = 1.0
_RETRY_SECONDS = 5


class Turns:
    """Gives turns to runs that wait for one."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def give(self, scopes: Iterable[str]) -> None:
        """Let go whoever can, after a run of one of the scopes was queued or has ended.

        This has a transaction of its own, after the one that made the change, so that nobody holds the locks of two
        scopes. What is left out because PostgreSQL is away, `sweep` does.
        """
        for scope in scopes:
            async with best_effort("give_turns", scope):
                await self._give(scope)

    async def sweep(self) -> None:
        """The same for every scope: whoever should have given a turn may have been killed before.

        Also forgets what the queue has written down of entries.
        """
        async with self._pool.acquire() as connection:
            await prune_queue_log(connection)
            scopes = await turn_store.scopes_with_waiting_runs(connection)
        await self.give(scopes)

    async def _give(self, scope: str) -> None:
        async with self._pool.acquire() as connection, connection.transaction():
            await turn_store.lock_scope(connection, scope)
            while await turn_store.give_next_turn(connection, scope):
                pass


class Backlog:
    """Bounds how many runs are queued, of all jobs and of each."""

    def __init__(self, pool: Pool, *, max_queued_runs: int) -> None:
        self._pool = pool
        self._limit = max_queued_runs
        self._room = 0
        self._looked_at = 0.0

    async def require_room(self) -> None:
        """Raise TooManyRequests when as many runs are queued as may be.

        While there is much room, not every run is counted anew: the bound may be passed by as many runs as several
        runners accept within a second.
        """
        if self._room > 0 and time.monotonic() - self._looked_at < _LOOK_SECONDS:
            self._room -= 1
            return
        async with self._pool.acquire() as connection:
            queued = await turn_store.count_queued(connection, limit=self._limit)
        if queued >= self._limit:
            raise _queue_full(f"{queued} runs are queued, which is as many as may be", self._limit)
        self._room, self._looked_at = (self._limit - queued) // 2, time.monotonic()


async def require_room_of_job(connection: Connection, job: str, max_queued: int) -> None:
    """Raise TooManyRequests when as many runs of a job are queued as it allows. Its scope must be locked."""
    queued = await turn_store.count_queued_of_job(connection, job, limit=max_queued)
    if queued >= max_queued:
        raise _queue_full(f"{queued} runs of the job {job} are queued, which is as many as it allows", max_queued)


def _queue_full(what: str, limit: int) -> TooManyRequests:
    return TooManyRequests(
        f"{what}. Try again when some have begun, or cancel what is of no use any more.",
        kind="queue-full",
        retry_after_seconds=_RETRY_SECONDS,
        maxQueued=limit,
    )
