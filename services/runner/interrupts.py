"""What may cut an attempt short: somebody cancels the run, the runner stops, or another one has taken the run over."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum, auto
from uuid import UUID

from libs.common.background import beside
from libs.common.database import Notifications, Pool, is_connection_lost
from libs.common.log import get_logger
from services.runner.store import lease_statuses

_log = get_logger("runner")


class Interrupt(StrEnum):
    """Why."""

    CANCEL = auto()  # somebody asked for it
    STOP = auto()  # the runner has to leave, and gives the run back
    LOSS = auto()  # the lease is another runner's: whatever this attempt does is of no use


class Interrupts:
    """Whether an attempt was interrupted, for the event loop and for threads. A loss goes over any other reason."""

    def __init__(self) -> None:
        self.reason: Interrupt | None = None
        self._event = asyncio.Event()
        self._flag = threading.Event()
        self._loss = threading.Event()

    def set(self, reason: Interrupt) -> None:
        """Interrupt the attempt."""
        if self.reason is None or reason is Interrupt.LOSS:
            self.reason = reason
        if reason is Interrupt.LOSS:
            self._loss.set()
        self._flag.set()
        self._event.set()

    @property
    def lost(self) -> bool:
        """Whether the lease was lost."""
        return self.reason is Interrupt.LOSS

    @property
    def flag(self) -> threading.Event:
        """For worker threads: whether there was an interrupt."""
        return self._flag

    @property
    def loss_flag(self) -> threading.Event:
        """For worker threads: whether the lease was lost."""
        return self._loss

    async def wait(self) -> Interrupt:
        """Wait for an interrupt."""
        await self._event.wait()
        return self.reason or Interrupt.LOSS


@dataclass(frozen=True, slots=True)
class _Watched:
    run_id: str
    interrupts: Interrupts


class Watch:
    """Looks after the leases of this runner's attempts: at one when there is news of it, at all of them regularly."""

    def __init__(self, pool: Pool, notifications: Notifications, *, poll_seconds: float) -> None:
        self._pool = pool
        self._notifications = notifications
        self._poll_seconds = poll_seconds
        self._attempts: dict[UUID, _Watched] = {}

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look regularly for as long as the context is open."""
        async with beside(self._look_regularly()):
            yield

    def news(self, run_id: str) -> AbstractAsyncContextManager[asyncio.Event]:
        """An event that is set when the lease of a run, or the wish to cancel it, may have changed."""
        return self._notifications.subscribed(run_id)

    @contextlib.asynccontextmanager
    async def over(
        self, run_id: str, lease: UUID, news: asyncio.Event, stopping: asyncio.Event
    ) -> AsyncIterator[Interrupts]:
        """Interrupts for one attempt, for as long as the context is open. `news` is from before the run was leased."""
        interrupts = Interrupts()
        self._attempts[lease] = _Watched(run_id, interrupts)
        tasks = [
            asyncio.create_task(self._follow(lease, news)),
            asyncio.create_task(_follow_stop(stopping, interrupts)),
        ]
        try:
            yield interrupts
        finally:
            del self._attempts[lease]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, lease: UUID, news: asyncio.Event) -> None:
        while True:
            await news.wait()
            news.clear()
            await self._look([lease])

    async def _look_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._poll_seconds)
            if self._attempts:
                await self._look(list(self._attempts))

    async def _look(self, leases: Collection[UUID]) -> None:
        """See which of these leases are another's by now, and which runs are to end."""
        watched = {lease: self._attempts[lease] for lease in leases}
        try:
            async with self._pool.acquire() as connection:
                statuses = await lease_statuses(connection, {attempt.run_id for attempt in watched.values()})
        except Exception as error:  # noqa: BLE001  # whatever it was, the next look decides
            # While PostgreSQL is away nobody can take the run over either; the next look decides.
            if not is_connection_lost(error):
                _log.exception("leases_not_watched", runs=len(watched))
            return
        for lease, attempt in watched.items():
            status = statuses.get(attempt.run_id)
            if status is None or status.lease != lease:
                attempt.interrupts.set(Interrupt.LOSS)
            elif status.cancel_requested:
                attempt.interrupts.set(Interrupt.CANCEL)


async def _follow_stop(stopping: asyncio.Event, interrupts: Interrupts) -> None:
    await stopping.wait()
    interrupts.set(Interrupt.STOP)
