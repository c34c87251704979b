"""Collecting what nothing keeps: artifacts, objects that no row names, stale uploads. Safe while people publish.

An artifact is marked, and after its grace claimed, its object deleted, and that recorded. The claim is made under the
lock that publishing takes, and looks once more whether something keeps it; from then on nobody begins to use it.
Whoever collects may be killed after any of these steps: the next one goes on there. Rows and revisions stay.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from libs.common import audit
from libs.common.audit import Origin
from libs.common.completion import in_thread
from libs.common.database import Connection, Pool, alone
from libs.common.errors import Unavailable
from libs.common.identifiers import new_id
from libs.common.log import get_logger
from libs.common.object_errors import ObjectStoreUnavailable
from libs.common.objects import ARTIFACTS, ListedObject, Listing, ObjectStore
from services.registry import sweep
from services.registry.store import artifacts, collection
from services.registry.store.collection import Candidate, Retention

"""What the keys of artifacts begin with."""

_KEY = re.compile(r"artifacts/sha256/([0-9a-f]{2})/(\1[0-9a-f]{62})\.(?:tgz|tar\.zst)")
_LOCK = "registry gc"

_log = get_logger("registry")


@dataclass(frozen=True, slots=True)
class Removed:
    """How many of something, and how many bytes."""

    count: int = 0
    size: int = 0

    def and_one(self, size: int) -> "Removed":
        """One more."""
        return Removed(self.count + 1, self.size + size)


@dataclass(slots=True)
class Collection:
    """What was collected, or in a dry run what would be.

    `artifacts` are those whose grace is over, `marked` those that begin to wait for theirs.
    """

    artifacts: list[Candidate] = field(default_factory=list)
    marked: list[Candidate] = field(default_factory=list)
    unnamed: Removed = field(default_factory=Removed)
    uploads: int = 0

    @property
    def found_something(self) -> bool:
        """Whether something was removed."""
        return bool(self.artifacts or self.unnamed.count or self.uploads)


class Collector:
    """Collects by a retention policy; uploads when they are `upload_max_age_seconds` old."""

    def __init__(
        self, pool: Pool, objects: ObjectStore, retention: Retention, *, upload_max_age_seconds: float
    ) -> None:
        self._pool = pool
        self._objects = objects
        self._retention = retention
        self._upload_max_age_seconds = upload_max_age_seconds

    async def plan(self) -> Collection:
        """What `collect` would do now. Changes nothing."""
        planned = Collection(
            uploads=await asyncio.to_thread(
                sweep.count_stale, self._objects, max_age_seconds=self._upload_max_age_seconds
            )
        )
        async for digests in self._digests():
            async with self._pool.acquire() as connection:
                candidates = await collection.list_candidates(connection, self._retention, digests)
            for candidate in candidates:
                (planned.artifacts if candidate.due else planned.marked).append(candidate)
        async for found in self._unnamed():
            planned.unnamed = planned.unnamed.and_one(found.size)
        return planned

    async def collect(self, origin: Origin) -> Collection:
        """Collect. Raises Unavailable where another registry is at it, and ObjectStoreUnavailable."""
        async with alone(self._pool, _LOCK) as mine:
            if not mine:
                raise Unavailable("another registry is collecting just now. Try again later.", kind="busy")
            return await self._collect(origin)

    async def collect_if_due(self, origin: Origin, *, interval_seconds: float) -> None:
        """Collect, unless another registry is at it or the last time is less than the interval ago."""
        async with alone(self._pool, _LOCK) as mine:
            if not mine:
                return
            async with self._pool.acquire() as connection:
                due = await collection.is_due(connection, "gc", interval_seconds=interval_seconds)
            if due:
                await self._collect(origin)

    async def _collect(self, origin: Origin) -> Collection:
        done = Collection()
        done.uploads = await asyncio.to_thread(sweep.sweep, self._objects, max_age_seconds=self._upload_max_age_seconds)
        async for digests in self._digests():
            async with self._pool.acquire() as connection:
                marked = await collection.mark(connection, self._retention, digests)
                candidates = await collection.list_candidates(connection, self._retention, digests)
            done.marked += [candidate for candidate in candidates if candidate.digest in marked]
            for candidate in candidates:
                if candidate.due and await self._try_to_collect(candidate, origin):
                    done.artifacts.append(candidate)
        async for found in self._unnamed():
            if await self._remove_unnamed(found):
                done.unnamed = done.unnamed.and_one(found.size)
        await self._end(done, origin)
        return done

    async def _digests(self) -> AsyncIterator[list[str]]:
        """Every artifact that was not collected, some at a time: no statement takes longer because there are many."""
        after = ""
        while True:
            async with self._pool.acquire() as connection:
                digests = await collection.list_digests(connection, after=after)
            if not digests:
                return
            yield digests
            after = digests[-1]

    async def _try_to_collect(self, candidate: Candidate, origin: Origin) -> bool:
        """Whether the artifact was collected. One whose object can't be deleted keeps no other from it."""
        try:
            return await self._collect_artifact(candidate, origin)
        except ObjectStoreUnavailable as error:
            await asyncio.to_thread(self._objects.check)  # raises where it is not this object alone
            _log.error("artifact_not_collected", digest=candidate.digest, error=error.message)
            return False

    async def _collect_artifact(self, candidate: Candidate, origin: Origin) -> bool:
        """Whether the artifact was collected: something may keep it by now."""
        async with self._pool.acquire() as connection, artifacts.locked(connection, candidate.digest):
            key = await collection.claim(connection, candidate.digest, self._retention)
            if key is None:
                return False
            await in_thread(self._objects.delete, key)  # never beyond the lock
            async with connection.transaction():
                await collection.finish(connection, candidate.digest, str(self._retention))
                await audit.append(connection, origin, _collected(candidate, self._retention))
        _log.info("artifact_collected", digest=candidate.digest, size=candidate.size, versions=candidate.versions)
        return True

    async def _unnamed(self) -> AsyncIterator[ListedObject]:
        """Objects of ours that no row names, older than the grace."""
        async for found in unnamed_objects(self._pool, self._objects, grace_seconds=self._retention.grace_seconds):
            yield found

    async def _remove_unnamed(self, found: ListedObject) -> bool:
        async with self._pool.acquire() as connection:
            return await remove_unnamed(connection, self._objects, found.key)

    async def _end(self, done: Collection, origin: Origin) -> None:
        counts = {
            "artifacts": len(done.artifacts),
            "artifactBytes": sum(candidate.size for candidate in done.artifacts),
            "unnamedObjects": done.unnamed.count,
            "unnamedBytes": done.unnamed.size,
            "uploads": done.uploads,
        }
        event = audit.Event("gc.finished", f"gc/{new_id('gc')}", detail={**counts, "policy": str(self._retention)})
        async with self._pool.acquire() as connection, connection.transaction():
            await collection.end(connection, "gc")
            if done.found_something:
                await audit.append(connection, origin, event)
        if done.found_something:
            _log.info("gc_finished", **counts)


def digest_of(key: str) -> str | None:
    """The digest of the artifact that has this key; None where the key is none that we make."""
    found = _KEY.fullmatch(key)
    return f"sha256:{found.group(2)}" if found else None


async def unnamed_objects(pool: Pool, objects: ObjectStore, *, grace_seconds: float) -> AsyncIterator[ListedObject]:
    """Objects under a key of ours that no row names and that are older than the grace: left by who was killed."""
    oldest = datetime.now(UTC) - timedelta(seconds=grace_seconds)
    async for page in listed(objects.pages(ARTIFACTS)):
        digests = {item.key: digest for item in page if item.modified_at <= oldest and (digest := digest_of(item.key))}
        async with pool.acquire() as connection:
            named = await collection.named_keys(connection, list(digests.values()))
        for item in page:
            if item.key in digests and item.key not in named:
                yield item


async def listed(pages: Iterator[Listing]) -> AsyncIterator[Listing]:
    """The pages of a list, each asked for in a thread."""
    while (page := await asyncio.to_thread(next, pages, None)) is not None:
        yield page


async def remove_unnamed(connection: Connection, objects: ObjectStore, key: str) -> bool:
    """Delete an object unless a row has come to name it; whether it was deleted. For keys of ours."""
    digest = digest_of(key)
    if digest is None:
        return False
    async with artifacts.locked(connection, digest):
        if key in await collection.named_keys(connection, [digest]):
            return False
        await in_thread(objects.delete, key)
    _log.info("unnamed_object_removed", key=key)
    return True


def _collected(candidate: Candidate, retention: Retention) -> audit.Event:
    return audit.Event(
        "artifact.collected",
        f"artifact/{candidate.digest}",
        digest=candidate.digest,
        reason=str(retention),
        detail={
            "size": candidate.size,
            "versions": candidate.versions,
            "lastUsedAt": candidate.last_used_at.isoformat() if candidate.last_used_at else None,
        },
    )
