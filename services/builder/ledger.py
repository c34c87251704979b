"""What happens to imports and builds, written down: each change with its event, and with who may make it.

Every change locks the import first and asks whether this builder still holds it. So events are numbered in the order of
their commits, and a builder that was declared lost can't write any more.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from libs.common import audit
from libs.common.database import Connection, Pool
from libs.common.journal import Journal
from libs.common.models import Build, BuildStage, BuildState, Failure, Import, ImportState
from services.builder import store
from services.builder.orders import Order
from services.builder.publishing import Publication

IMPORT_STARTED = "import.started"
IMPORT_HANDED_BACK = "import.handed_back"
IMPORT_LOST = "import.lost"
IMPORT_FINISHED = "import.finished"
BUILD_STAGE = "build.stage"
BUILD_FINISHED = "build.finished"
DEFINITIONS_UPDATED = "definitions.updated"

IMPORTS_LEFT = "imports left"
"""What builders are notified of, on the channel of the journal, when an import has no builder any more."""

_STOPPED = "the builder that worked on this import was stopped"
_LOST = "the builder that worked on this import was lost"


class HolderLost(Exception):
    """This builder was declared lost, or the import is over: it may not write to it any more."""


async def import_of(connection: Connection, row: store.ImportRow) -> Import:
    """An import with its builds, as it goes over the wire."""
    return import_with(row, await store.list_builds(connection, [row.id]))


def import_with(row: store.ImportRow, builds: Sequence[store.BuildRow]) -> Import:
    """An import with those of `builds` that are its own, as it goes over the wire."""
    return Import(
        id=row.id,
        example=row.example,
        state=row.state,
        builds=[build_of(build) for build in builds if build.import_id == row.id],
        error=Failure.model_validate(row.error) if row.error else None,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def build_of(row: store.BuildRow) -> Build:
    """A build as it goes over the wire."""
    return Build.model_validate(row)


class Ledger:
    """Writes on behalf of one builder, `holder`."""

    def __init__(self, pool: Pool, journal: Journal, holder: str) -> None:
        self._pool = pool
        self._journal = journal
        self.holder = holder

    async def heartbeat(self, import_ids: Sequence[str]) -> set[str]:
        """Say that these imports are being worked on; those of them that are still ours."""
        async with self._pool.acquire() as connection:
            return await store.heartbeat(connection, self.holder, import_ids)

    async def start_import(self, import_id: str) -> None:
        """Say that work has begun; raises HolderLost."""
        async with self._holding(import_id) as connection:
            await store.start_import(connection, import_id)
            await self._tell_import(connection, import_id, IMPORT_STARTED)

    async def start_stage(self, import_id: str, build_id: str, stage: BuildStage, version: str | None = None) -> None:
        """Say what a build is doing; raises HolderLost."""
        async with self._holding(import_id) as connection:
            await store.stage_build(connection, build_id, stage, version)
            await self._tell_build(connection, build_id, BUILD_STAGE)

    async def succeed_build(self, import_id: str, build_id: str, published: Publication) -> None:
        """Say what a build published; raises HolderLost."""
        async with self._holding(import_id) as connection:
            await store.succeed_build(
                connection,
                build_id,
                version=published.version.version,
                revision=published.version.revision,
                digest=published.version.digest,
                previous_digest=published.previous_digest,
                unchanged=published.unchanged,
                platforms=published.version.platforms,
            )
            await self._tell_build(connection, build_id, BUILD_FINISHED)

    async def fail_build(self, import_id: str, build_id: str, error: Failure) -> None:
        """Say why a build failed; raises HolderLost."""
        async with self._holding(import_id) as connection:
            await self._fail_build(connection, build_id, error)

    async def tell(self, import_id: str, kind: str, data: dict[str, Any]) -> None:
        """Add an event that changes nothing; raises HolderLost."""
        async with self._holding(import_id) as connection:
            await store.append_event(connection, import_id, kind, data)
            await self._journal.wake(connection, import_id)

    async def finish_import(self, import_id: str, state: ImportState, error: Failure | None) -> list[str]:
        """End an import, and with `error` every build of it that has not ended; their ids. Raises HolderLost."""
        async with self._holding(import_id) as connection:
            return await self._finish(connection, import_id, state, error)

    async def hand_back(self, import_id: str) -> None:
        """Leave an import to other builders, and let its builds that have not ended wait again; raises HolderLost."""
        async with self._holding(import_id) as connection:
            await store.requeue_builds(connection, import_id)
            await store.hand_back_import(connection, import_id)
            await self._tell_import(connection, import_id, IMPORT_HANDED_BACK)
            await self._journal.wake(connection, IMPORTS_LEFT)

    async def is_import_left(self, lost_seconds: float, *, but: Sequence[str]) -> bool:
        """Whether there is an import that `take_over` would take."""
        async with self._pool.acquire() as connection:
            return await store.is_import_left(connection, lost_seconds, but=but)

    async def take_over(self, lost_seconds: float, *, but: Sequence[str]) -> Order | None:
        """Take one import that has no builder any more, other than those in `but`: what is left to be done for it.

        It was handed back, or its builder has not been heard of for `lost_seconds`.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            left = await store.lock_left_import(connection, lost_seconds, but=but)
            if left is None:
                return None
            lost = left.holder is not None
            times_lost = await store.take_import(connection, left.id, self.holder, lost=lost)
            if lost:
                await store.requeue_builds(connection, left.id)
                await self._tell_import(connection, left.id, IMPORT_LOST)
            builds = await store.list_builds(connection, [left.id])
        return Order(
            left.id,
            left.example,
            left.requested_by,
            waiting={build.slug: build.id for build in builds if build.state is BuildState.QUEUED},
            built=[build.slug for build in builds if build.state is BuildState.SUCCEEDED],
            failed=[build.slug for build in builds if build.state is BuildState.FAILED],
            interruption=_LOST if lost else _STOPPED,
            times_lost=times_lost,
        )

    async def _finish(
        self, connection: Connection, import_id: str, state: ImportState, error: Failure | None
    ) -> list[str]:
        unfinished = [
            build.id
            for build in await store.list_builds(connection, [import_id])
            if build.state in (BuildState.QUEUED, BuildState.RUNNING)
        ]
        if error is not None:
            for build_id in unfinished:
                await self._fail_build(connection, build_id, error)
        await store.finish_import(connection, import_id, state, _stored(error) if error else None)
        finished = await self._tell_import(connection, import_id, IMPORT_FINISHED)
        row = await store.get_import(connection, import_id)
        if row is not None:
            await audit.append(
                connection, audit.Origin(actor=row.requested_by, request_id=row.request_id), _finished_event(finished)
            )
        return unfinished

    async def _fail_build(self, connection: Connection, build_id: str, error: Failure) -> None:
        await store.fail_build(connection, build_id, _stored(error))
        await self._tell_build(connection, build_id, BUILD_FINISHED)

    async def _tell_build(self, connection: Connection, build_id: str, kind: str) -> None:
        row = await store.get_build(connection, build_id)
        if row is None:
            raise LookupError(build_id)
        build = build_of(row)
        await store.append_event(connection, row.import_id, kind, build.model_dump(mode="json", by_alias=True))
        await self._journal.wake(connection, row.import_id)
        await self._journal.wake(connection, build_id)

    async def _tell_import(self, connection: Connection, import_id: str, kind: str) -> Import:
        row = await store.get_import(connection, import_id)
        if row is None:
            raise LookupError(import_id)
        shown = await import_of(connection, row)
        await store.append_event(connection, import_id, kind, shown.model_dump(mode="json", by_alias=True))
        await self._journal.wake(connection, import_id)
        return shown

    @asynccontextmanager
    async def _holding(self, import_id: str) -> AsyncIterator[Connection]:
        async with self._pool.acquire() as connection, connection.transaction():
            if not await store.hold_import(connection, import_id, self.holder):
                raise HolderLost(import_id)
            yield connection


def _stored(error: Failure) -> dict[str, Any]:
    return error.model_dump(mode="json")


def _finished_event(finished: Import) -> audit.Event:
    return audit.Event(
        "import.finished",
        f"import/{finished.id}",
        detail={
            "example": finished.example,
            "state": finished.state.value,
            "error": finished.error.message if finished.error else None,
            "builds": [
                {
                    "id": build.id,
                    "slug": build.slug,
                    "state": build.state.value,
                    "version": build.version,
                    "revision": build.revision,
                    "digest": build.digest,
                    "previousDigest": build.previous_digest,
                    "unchanged": build.unchanged,
                }
                for build in finished.builds
            ],
        },
    )
