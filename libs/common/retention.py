"""Removing what is kept for some time only: objects that belong to work which ended long ago. Its rows stay."""

import asyncio
import getpass
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from libs.common import audit
from libs.common.audit import Origin
from libs.common.database import Pool, alone, is_connection_lost
from libs.common.errors import Gone, StowageError
from libs.common.identifiers import new_id
from libs.common.log import get_logger
from libs.common.models import rfc3339
from libs.common.objects import ObjectStore
from libs.common.tables import readable_bytes, render_table

_FIRST_SECONDS = 60.0
_INTERVAL_SECONDS = 3600.0

_log = get_logger("retention")


@dataclass(frozen=True, slots=True)
class Belongings:
    """Whose objects are to go: the id of a run or build, and what the keys of its objects begin with."""

    owner: str
    prefixes: tuple[str, ...]


@dataclass(slots=True)
class Expired:
    """How much was removed, or in a dry run would be."""

    owners: int = 0
    objects: int = 0
    size: int = 0


class Expiry:
    """Removes the objects of each of the `belongings`, and then has their owner forgotten.

    Whoever is killed in between does it again. `days` is how long they are kept, `owners` what they are called.
    """

    def __init__(
        self,
        pool: Pool,
        objects: ObjectStore,
        *,
        owners: str,
        days: float,
        belongings: Callable[[], AsyncIterator[Belongings]],
        forget: Callable[[str], Awaitable[None]],
    ) -> None:
        self._pool = pool
        self._objects = objects
        self._owners = owners
        self._days = days
        self._belongings = belongings
        self._forget = forget

    async def expire(self, origin: Origin, *, dry_run: bool = False) -> Expired:
        """Do it now; nothing, where somebody else is at it. A dry run counts only. Raises ObjectStoreUnavailable."""
        expired = Expired()
        async with alone(self._pool, f"expiry of {self._owners}") as mine:
            if not mine:
                return expired
            async for owned in self._belongings():
                for prefix in owned.prefixes:
                    count, size = await asyncio.to_thread(_remove, self._objects, prefix, dry_run)
                    expired.objects += count
                    expired.size += size
                expired.owners += 1
                if not dry_run:
                    await self._forget(owned.owner)
            if expired.owners and not dry_run:
                await self._record(origin, expired)
        return expired

    async def _record(self, origin: Origin, expired: Expired) -> None:
        counts = {self._owners: expired.owners, "objects": expired.objects, "bytes": expired.size}
        reason = f"keep logs and outputs of {self._owners} for {self._days:g} days"
        event = audit.Event("gc.finished", f"gc/{new_id('gc')}", reason=reason, detail=counts)
        async with self._pool.acquire() as connection:
            await audit.append(connection, origin, event)
        _log.info("expired", **counts)

    async def by_hand(self, *, dry_run: bool) -> str:
        """Do it for whoever is at the terminal: a table of what was, or would be, removed."""
        expired = await self.expire(Origin(actor=f"command-line:{getpass.getuser()}"), dry_run=dry_run)
        done = "would be removed" if dry_run else "removed"
        row = (
            f"older than {self._days:g} days",
            str(expired.owners),
            str(expired.objects),
            readable_bytes(expired.size),
        )
        return render_table((done, self._owners, "objects", "size"), [row])


async def regularly(work: Callable[[], Awaitable[None]]) -> None:
    """Do `work` after a minute and then once an hour, for as long as the task runs. What fails is tried again then."""
    pause = _FIRST_SECONDS
    while True:
        await asyncio.sleep(pause)
        pause = _INTERVAL_SECONDS
        try:
            await work()
        except Exception as error:  # noqa: BLE001  # the next time may do better
            if isinstance(error, StowageError) or is_connection_lost(error):
                _log.warning("upkeep_failed", error=str(error))
            else:
                _log.exception("upkeep_failed")


def gone(what: str, expired_at: datetime) -> Gone:
    """The error for whoever asks for what was removed."""
    return Gone(
        f"{what} was removed at {rfc3339(expired_at)}: it had been kept for as long as the retention says.",
        kind="expired",
        expiredAt=rfc3339(expired_at),
    )


def _remove(objects: ObjectStore, prefix: str, dry_run: bool) -> tuple[int, int]:  # noqa: FBT001  # for a thread
    count = size = 0
    for page in objects.pages(prefix):
        for item in page:
            if not dry_run:
                objects.delete(item.key)
            count += 1
            size += item.size
    return count, size
