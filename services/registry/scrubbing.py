"""Looking whether the bucket has what the database says: each object is read again, and compared by size and digest.

What is damaged is quarantined until the same bytes are published again, or the object is found whole. A scrub that is
killed is gone on with where it was.
"""

import asyncio
import hashlib
import time
from dataclasses import asdict, dataclass, field

from libs.common import audit
from libs.common.audit import Origin
from libs.common.completion import in_thread
from libs.common.database import Pool, alone
from libs.common.errors import Unavailable
from libs.common.identifiers import new_id
from libs.common.log import get_logger
from libs.common.object_errors import ObjectMissing, ObjectStoreUnavailable
from libs.common.objects import ObjectBody, ObjectStore
from services.registry.collection import remove_unnamed, unnamed_objects
from services.registry.condition import record_damage, record_repair
from services.registry.store import artifacts, collection, scrubbing
from services.registry.store.scrubbing import SCRUB, Damaged, Listed

_LOCK = "registry scrub"
_OBJECTS_PHASE = "~"  # comes behind every digest

_log = get_logger("registry")


@dataclass(slots=True)
class Totals:
    """What a scrub has found so far, and the digest that it has come to."""

    after: str = ""
    artifacts: int = 0
    size: int = 0
    quarantined: int = 0
    repaired: int = 0
    unreadable: int = 0
    unnamed: int = 0
    unnamed_size: int = 0
    removed: int = 0


@dataclass(slots=True)
class Report:
    """A scrub that came to its end, and every artifact that is quarantined now."""

    totals: Totals
    damaged: list[Damaged] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing remains to be done: no content is lost, every object was read, and every one has a row."""
        lost = any(item.equal_digest is None for item in self.damaged)
        return not (lost or self.totals.unreadable or self.totals.unnamed > self.totals.removed)


class Scrubber:
    """Scrubs, at no more than `bytes_per_second`. Objects without a row count once they are older than the grace."""

    def __init__(self, pool: Pool, objects: ObjectStore, *, grace_seconds: float, bytes_per_second: float) -> None:
        self._pool = pool
        self._objects = objects
        self._grace_seconds = grace_seconds
        self._bytes_per_second = bytes_per_second

    async def scrub(self, origin: Origin, *, repair: bool) -> Report:
        """Scrub, or go on where one was interrupted; `repair` removes objects without a row.

        Raises Unavailable where another registry is at it, and ObjectStoreUnavailable.
        """
        async with alone(self._pool, _LOCK) as mine:
            if not mine:
                raise Unavailable("another registry is scrubbing just now. Try again later.", kind="busy")
            return await self._scrub(origin, repair=repair)

    async def scrub_if_due(self, origin: Origin, *, interval_seconds: float) -> None:
        """Scrub without repairing, unless another registry is at it or the last time is less than the interval ago."""
        async with alone(self._pool, _LOCK) as mine:
            if not mine:
                return
            async with self._pool.acquire() as connection:
                due = await collection.is_due(connection, SCRUB, interval_seconds=interval_seconds)
            if due:
                await self._scrub(origin, repair=False)

    async def _scrub(self, origin: Origin, *, repair: bool) -> Report:
        async with self._pool.acquire() as connection:
            totals = Totals(**await scrubbing.begin(connection))
        while page := await self._page(totals.after):
            for listed in page:
                await self._look_at(listed, totals, origin)
                totals.after = listed.digest
                async with self._pool.acquire() as connection:
                    await scrubbing.save(connection, asdict(totals))
        await self._look_for_unnamed(totals, repair=repair)
        async with self._pool.acquire() as connection, connection.transaction():
            await collection.end(connection, SCRUB)
            counts = {name: value for name, value in asdict(totals).items() if name != "after"}
            await audit.append(
                connection, origin, audit.Event("scrub.finished", f"scrub/{new_id('scr')}", detail=counts)
            )
            damaged = await scrubbing.list_damaged(connection)
        _log.info("scrub_finished", **counts)
        return Report(totals, damaged)

    async def _page(self, after: str) -> list[Listed]:
        if after == _OBJECTS_PHASE:
            return []
        async with self._pool.acquire() as connection:
            return await scrubbing.list_from(connection, after=after)

    async def _look_at(self, listed: Listed, totals: Totals, origin: Origin) -> None:
        totals.artifacts += 1
        totals.size += listed.size
        try:
            damage = await self._damage_of(listed)
            if damage is not None or listed.known_damaged:
                await self._settle(listed, totals, origin)
        except ObjectStoreUnavailable as error:
            await asyncio.to_thread(self._objects.check)  # raises where it is not this object alone
            totals.unreadable += 1
            _log.error("artifact_unreadable", digest=listed.digest, error=error.message)

    async def _settle(self, listed: Listed, totals: Totals, origin: Origin) -> None:
        """Look once more, while nobody else touches the object, and write down what is so."""
        async with self._pool.acquire() as connection, artifacts.locked(connection, listed.digest):
            found = await artifacts.get(connection, listed.digest)
            if found is None or found.collected_at is not None or found.gc_claimed_at is not None:
                return
            damage = await self._damage_of(listed)
            if damage is None and found.damaged_at is not None:
                await record_repair(connection, found, origin, subject=None)
                totals.repaired += 1
            elif damage is not None and found.damaged_at is None:
                await record_damage(connection, found, damage, origin)
                totals.quarantined += 1

    async def _damage_of(self, listed: Listed) -> str | None:
        """What is wrong with an object, as a clause; None where it is whole."""
        try:
            body = await in_thread(self._objects.read, listed.object_key)
        except ObjectMissing:
            return "its object is missing from the bucket"
        try:
            if body.size != listed.size:
                return f"its object has {body.size} bytes instead of {listed.size}"
            found = await self._digest_of(body)
        finally:
            await asyncio.to_thread(body.close)
        return None if found == listed.digest else f"its object has other bytes, {found}"

    async def _digest_of(self, body: ObjectBody) -> str:
        """The digest of what is read, at the pace that is allowed."""
        hashed, chunks = hashlib.sha256(), iter(body)
        began, received = time.monotonic(), 0
        while chunk := await in_thread(next, chunks, b""):
            await in_thread(hashed.update, chunk)
            received += len(chunk)
            await asyncio.sleep(began + received / self._bytes_per_second - time.monotonic())
        return f"sha256:{hashed.hexdigest()}"

    async def _look_for_unnamed(self, totals: Totals, *, repair: bool) -> None:
        totals.after, totals.unnamed, totals.unnamed_size, totals.removed = _OBJECTS_PHASE, 0, 0, 0
        async for found in unnamed_objects(self._pool, self._objects, grace_seconds=self._grace_seconds):
            totals.unnamed += 1
            totals.unnamed_size += found.size
            if repair:
                async with self._pool.acquire() as connection:
                    totals.removed += await remove_unnamed(connection, self._objects, found.key)
