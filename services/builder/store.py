"""The builder's tables. Functions take a connection and never commit; times and states are the database's."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from libs.common.database import Connection
from libs.common.models import BuildStage, BuildState, ImportState

JOURNAL_GUARD = """
    SELECT FROM builder.imports
    WHERE id = (SELECT import_id FROM builder.builds WHERE id = $1) AND holder = $2
    FOR SHARE
"""
"""Who may write to the log of a build: the holder of its import, also when that has ended."""


@dataclass(frozen=True, slots=True)
class BuildRow:
    """A build."""

    id: str
    import_id: str
    slug: str
    state: BuildState
    stage: BuildStage | None
    version: str | None
    revision: int | None
    digest: str | None
    previous_digest: str | None
    unchanged: bool | None
    platforms: list[str]
    error: dict[str, Any] | None
    log_key: str | None
    log_expired_at: datetime | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class ImportRow:
    """An import, without its builds."""

    id: str
    example: str
    state: ImportState
    error: dict[str, Any] | None
    requested_by: str
    request_id: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class LeftImport:
    """An import that has no builder any more. Its `holder` was lost; None where it was handed back."""

    id: str
    example: str
    requested_by: str
    holder: str | None


@dataclass(frozen=True, slots=True)
class ImportEvent:
    """One event of an import; `seq` counts from 1."""

    seq: int
    kind: str
    data: dict[str, Any]


_INSERT_IMPORT = """
    INSERT INTO builder.imports (id, example, requested_by, request_id, holder) VALUES ($1, $2, $3, $4, $5)
"""


async def insert_import(
    connection: Connection, import_id: str, *, example: str, requested_by: str, request_id: str | None, holder: str
) -> None:
    """Add an import that waits for its turn."""
    await connection.execute(_INSERT_IMPORT, import_id, example, requested_by, request_id, holder)


_INSERT_BUILD = "INSERT INTO builder.builds (id, import_id, slug) VALUES ($1, $2, $3)"


async def insert_build(connection: Connection, build_id: str, *, import_id: str, slug: str) -> None:
    """Add a build that waits for its turn."""
    await connection.execute(_INSERT_BUILD, build_id, import_id, slug)


_HOLD_IMPORT = """
    SELECT id FROM builder.imports
    WHERE id = $1 AND holder = $2 AND state IN ('queued', 'running')
    FOR UPDATE
"""


async def hold_import(connection: Connection, import_id: str, holder: str) -> bool:
    """Lock an import until the transaction ends; whether `holder` still works on it."""
    return await connection.fetchval(_HOLD_IMPORT, import_id, holder) is not None


_LEFT_IMPORTS = """
    SELECT id, example, requested_by, holder FROM builder.imports
    WHERE state IN ('queued', 'running')
      AND (holder IS NULL OR heartbeat_at < now() - make_interval(secs => $1))
      AND id <> ALL($2::text[])
    ORDER BY id LIMIT 1
"""


async def is_import_left(connection: Connection, lost_seconds: float, *, but: Sequence[str]) -> bool:
    """Whether `lock_left_import` would find one now."""
    return await connection.fetchrow(_LEFT_IMPORTS, lost_seconds, list(but)) is not None


_LOCK_LEFT_IMPORT = f"{_LEFT_IMPORTS} FOR UPDATE SKIP LOCKED"


async def lock_left_import(connection: Connection, lost_seconds: float, *, but: Sequence[str]) -> LeftImport | None:
    """Lock the oldest import that was handed back, or whose holder has not been heard of for `lost_seconds`.

    Those whose ids are in `but` are passed over.
    """
    row = await connection.fetchrow(_LOCK_LEFT_IMPORT, lost_seconds, list(but))
    return LeftImport(**row) if row else None


_TAKE_IMPORT = """
    UPDATE builder.imports
    SET holder = $2, heartbeat_at = now(), state = 'queued', times_lost = times_lost + $3::boolean::int
    WHERE id = $1
    RETURNING times_lost
"""


async def take_import(connection: Connection, import_id: str, holder: str, *, lost: bool) -> int:
    """Give an import to `holder`; how many others were `lost` while they worked on it."""
    times: int = await connection.fetchval(_TAKE_IMPORT, import_id, holder, lost)
    return times


_HAND_BACK_IMPORT = "UPDATE builder.imports SET holder = NULL, state = 'queued' WHERE id = $1"


async def hand_back_import(connection: Connection, import_id: str) -> None:
    """Say that nobody works on an import."""
    await connection.execute(_HAND_BACK_IMPORT, import_id)


_REQUEUE_BUILDS = """
    UPDATE builder.builds SET state = 'queued', stage = NULL, version = NULL, started_at = NULL
    WHERE import_id = $1 AND state = 'running'
"""


async def requeue_builds(connection: Connection, import_id: str) -> None:
    """Let the builds of an import that had begun and not ended wait for their turn again."""
    await connection.execute(_REQUEUE_BUILDS, import_id)


_HEARTBEAT = """
    UPDATE builder.imports SET heartbeat_at = now()
    WHERE holder = $1 AND id = ANY($2::text[]) AND state IN ('queued', 'running')
    RETURNING id
"""


async def heartbeat(connection: Connection, holder: str, import_ids: Sequence[str]) -> set[str]:
    """Say that `holder` works on these imports; those of them that are still its own."""
    return {row["id"] for row in await connection.fetch(_HEARTBEAT, holder, list(import_ids))}


_START_IMPORT = """
    UPDATE builder.imports SET state = 'running', started_at = coalesce(started_at, now()) WHERE id = $1
"""


async def start_import(connection: Connection, import_id: str) -> None:
    """Say that an import is being worked on."""
    await connection.execute(_START_IMPORT, import_id)


_FINISH_IMPORT = "UPDATE builder.imports SET state = $2, error = $3, finished_at = now() WHERE id = $1"


async def finish_import(
    connection: Connection, import_id: str, state: ImportState, error: dict[str, Any] | None
) -> None:
    """Give an import its final state."""
    await connection.execute(_FINISH_IMPORT, import_id, state.value, error)


_GET_IMPORT = """
    SELECT id, example, state, error, requested_by, request_id, created_at, started_at, finished_at
    FROM builder.imports WHERE id = $1
"""


async def get_import(connection: Connection, import_id: str) -> ImportRow | None:
    """An import."""
    row = await connection.fetchrow(_GET_IMPORT, import_id)
    return _import(row) if row else None


_LIST_IMPORTS = """
    SELECT id, example, state, error, requested_by, request_id, created_at, started_at, finished_at
    FROM builder.imports
    WHERE ($1::text IS NULL OR example = $1) AND ($2::text IS NULL OR id < $2)
    ORDER BY id DESC
    LIMIT $3
"""


async def list_imports(
    connection: Connection, *, example: str | None, before: str | None, limit: int
) -> list[ImportRow]:
    """Imports, newest first, of one example or of all."""
    return [_import(row) for row in await connection.fetch(_LIST_IMPORTS, example, before, limit)]


_STAGE_BUILD = """
    UPDATE builder.builds
    SET state = 'running', stage = $2, version = coalesce($3, version), started_at = coalesce(started_at, now())
    WHERE id = $1
"""


async def stage_build(connection: Connection, build_id: str, stage: BuildStage, version: str | None) -> None:
    """Say what a build is doing, and which version it makes once that is known."""
    await connection.execute(_STAGE_BUILD, build_id, stage.value, version)


_SUCCEED_BUILD = """
    UPDATE builder.builds
    SET state = 'succeeded', stage = 'done', version = $2, revision = $3, digest = $4, previous_digest = $5,
        unchanged = $6, platforms = $7, finished_at = now()
    WHERE id = $1
"""


async def succeed_build(
    connection: Connection,
    build_id: str,
    *,
    version: str,
    revision: int,
    digest: str,
    previous_digest: str | None,
    unchanged: bool,
    platforms: Sequence[str],
) -> None:
    """Say what a build published."""
    await connection.execute(
        _SUCCEED_BUILD, build_id, version, revision, digest, previous_digest, unchanged, list(platforms)
    )


_FAIL_BUILD = "UPDATE builder.builds SET state = 'failed', error = $2, finished_at = now() WHERE id = $1"


async def fail_build(connection: Connection, build_id: str, error: dict[str, Any]) -> None:
    """Say why a build failed."""
    await connection.execute(_FAIL_BUILD, build_id, error)


_GET_BUILD = """
    SELECT id, import_id, slug, state, stage, version, revision, digest, previous_digest, unchanged, platforms, error,
           log_key, log_expired_at, created_at, started_at, finished_at
    FROM builder.builds WHERE id = $1
"""


async def get_build(connection: Connection, build_id: str) -> BuildRow | None:
    """A build."""
    row = await connection.fetchrow(_GET_BUILD, build_id)
    return _build(row) if row else None


_LIST_BUILDS = """
    SELECT id, import_id, slug, state, stage, version, revision, digest, previous_digest, unchanged, platforms, error,
           log_key, log_expired_at, created_at, started_at, finished_at
    FROM builder.builds WHERE import_id = ANY($1::text[]) ORDER BY slug
"""


async def list_builds(connection: Connection, import_ids: Sequence[str]) -> list[BuildRow]:
    """The builds of some imports, by slug."""
    return [_build(row) for row in await connection.fetch(_LIST_BUILDS, list(import_ids))]


_UNARCHIVED_BUILDS = """
    SELECT id FROM builder.builds
    WHERE state IN ('succeeded', 'failed') AND log_key IS NULL AND finished_at < now() - make_interval(secs => $1)
    ORDER BY id LIMIT 100
"""


async def list_unarchived_builds(connection: Connection, older_than_seconds: float) -> list[str]:
    """Builds that ended a while ago, and whose logs are not in the bucket."""
    return [row["id"] for row in await connection.fetch(_UNARCHIVED_BUILDS, older_than_seconds)]


_ARCHIVE_LOG = "UPDATE builder.builds SET log_key = $2 WHERE id = $1"


async def archive_log(connection: Connection, build_id: str, key: str) -> None:
    """Say where in the bucket the log of a build is."""
    await connection.execute(_ARCHIVE_LOG, build_id, key)


_EXPIRABLE_BUILDS = """
    SELECT id FROM builder.builds
    WHERE log_key IS NOT NULL AND log_expired_at IS NULL AND finished_at < now() - $1 * interval '1 day' AND id > $2
    ORDER BY id LIMIT 100
"""


async def list_expirable_builds(connection: Connection, days: float, *, after: str) -> list[str]:
    """Some of the builds that ended so long ago and still have their log, by id from behind `after` on."""
    return [row["id"] for row in await connection.fetch(_EXPIRABLE_BUILDS, days, after)]


_EXPIRE_LOG = "UPDATE builder.builds SET log_expired_at = now() WHERE id = $1"


async def expire_log(connection: Connection, build_id: str) -> None:
    """Say that the log of a build is gone, because it was kept long enough."""
    await connection.execute(_EXPIRE_LOG, build_id)


_APPEND_EVENT = """
    INSERT INTO builder.import_events (import_id, seq, kind, data)
    SELECT $1, coalesce(max(seq), 0) + 1, $2, $3 FROM builder.import_events WHERE import_id = $1
"""


async def append_event(connection: Connection, import_id: str, kind: str, data: dict[str, Any]) -> None:
    """Number and add an event. The import must be locked by the transaction, so that numbers are in order of commit."""
    await connection.execute(_APPEND_EVENT, import_id, kind, data)


_LIST_EVENTS = """
    SELECT seq, kind, data FROM builder.import_events WHERE import_id = $1 AND seq > $2 ORDER BY seq LIMIT $3
"""


async def list_events(connection: Connection, import_id: str, *, after: int, limit: int) -> list[ImportEvent]:
    """Events of an import from number `after` + 1 on."""
    rows = await connection.fetch(_LIST_EVENTS, import_id, after, limit)
    return [ImportEvent(row["seq"], row["kind"], row["data"]) for row in rows]


def _import(row: asyncpg.Record) -> ImportRow:
    return ImportRow(**{**row, "state": ImportState(row["state"])})


def _build(row: asyncpg.Record) -> BuildRow:
    stage = BuildStage(row["stage"]) if row["stage"] else None
    return BuildRow(**{**row, "state": BuildState(row["state"]), "stage": stage})
