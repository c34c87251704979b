"""Runs and their outputs in PostgreSQL.

Whoever executes a run holds a lease on it. Every statement that writes to a run on behalf of an attempt names the lease
and says whether it still held.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from libs.common.database import Connection
from libs.common.models import Output, RunState
from libs.common.objects import output_key

JOURNAL_GUARD = "SELECT FROM runner.runs WHERE id = $1 AND lease = $2 AND finished_at IS NULL FOR KEY SHARE"
"""Who may write to the log of a run: the holder of its lease, until it ends."""

RUNS_CHANNEL = "runner_runs"
"""Notified with a run's id when its lease or its wish to be cancelled may have changed."""


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run that is to be queued. `artifact` is the wire shape of what it is pinned to."""

    id: str
    slug: str
    version: str
    revision: int
    digest: str
    artifact: dict[str, Any]
    job: str | None
    workflow_run_id: str | None
    step: str | None
    parameters: dict[str, Any]
    inputs: dict[str, Any]
    limits: dict[str, Any]
    max_attempts: int
    created_by: str
    request_id: str | None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as it can be shown."""

    id: str
    state: RunState
    slug: str
    version: str
    revision: int
    digest: str
    job: str | None
    workflow_run_id: str | None
    step: str | None
    parameters: dict[str, Any]
    inputs: dict[str, Any]
    result: Any
    error: dict[str, Any] | None
    progress: float | None
    progress_message: str | None
    attempts: int
    queued_ms: int | None
    first_byte_ms: int | None
    fetch_ms: int | None
    start_ms: int | None
    handler_ms: int | None
    upload_ms: int | None
    remove_ms: int | None
    log_key: str | None
    created_at: datetime
    created_by: str
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class LockedRun:
    """What decides what may be done with a run, while its row is locked."""

    state: RunState
    workflow_run_id: str | None
    attempts: int
    max_attempts: int
    cancel_requested: bool
    lease: UUID | None


@dataclass(frozen=True, slots=True)
class Assignment:
    """A leased run: all that is needed to execute it."""

    id: str
    lease: UUID
    slug: str
    version: str
    revision: int
    digest: str
    artifact: dict[str, Any]
    workflow_run_id: str | None
    parameters: dict[str, Any]
    inputs: dict[str, Any]
    limits: dict[str, Any]
    attempts: int
    max_attempts: int
    queued_ms: int | None
    created_by: str
    request_id: str | None


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """Who may write to a run, and whether somebody wants it to end."""

    lease: UUID | None
    cancel_requested: bool


@dataclass(frozen=True, slots=True)
class Timings:
    """What the phases of an attempt cost, in milliseconds; None for those that were not reached."""

    first_byte_ms: int | None = None
    fetch_ms: int | None = None
    start_ms: int | None = None
    handler_ms: int | None = None
    upload_ms: int | None = None
    remove_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended."""

    state: RunState
    result: Any
    error: dict[str, Any] | None
    timings: Timings
    log_key: str | None


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs to list."""

    state: RunState | None = None
    slug: str | None = None
    job: str | None = None
    workflow_run_id: str | None = None


_INSERT = """
    INSERT INTO runner.runs (id, slug, version, revision, digest, artifact, job, workflow_run_id, step, parameters,
                             inputs, limits, max_attempts, created_by, request_id)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
"""


async def insert_run(connection: Connection, run: NewRun) -> None:
    """Insert a queued run; its entry in the queue is `enqueue_run`'s business."""
    await connection.execute(
        _INSERT,
        run.id,
        run.slug,
        run.version,
        run.revision,
        run.digest,
        run.artifact,
        run.job,
        run.workflow_run_id,
        run.step,
        run.parameters,
        run.inputs,
        run.limits,
        run.max_attempts,
        run.created_by,
        run.request_id,
    )


_SHOWN = """
    id, state, slug, version, revision, digest, job, workflow_run_id, step, parameters, inputs, result, error, progress,
    progress_message, attempts, queued_ms, first_byte_ms, fetch_ms, start_ms, handler_ms, upload_ms, remove_ms, log_key,
    created_at, created_by, started_at, finished_at
"""

_GET = f"SELECT {_SHOWN} FROM runner.runs WHERE id = $1"  # noqa: S608  # a constant

_LIST = f"""
    SELECT {_SHOWN}
    FROM runner.runs
    WHERE ($1::runner.run_state IS NULL OR state = $1)
      AND ($2::text IS NULL OR slug = $2)
      AND ($3::text IS NULL OR job = $3)
      AND ($4::text IS NULL OR workflow_run_id = $4)
      AND ($5::text IS NULL OR id < $5)
    ORDER BY id DESC
    LIMIT $6
"""  # noqa: S608  # constants


async def get_run(connection: Connection, run_id: str) -> RunRecord | None:
    """A run, or None."""
    row = await connection.fetchrow(_GET, run_id)
    return _record(row) if row else None


async def list_runs(connection: Connection, wanted: RunFilter, *, before: str | None, limit: int) -> list[RunRecord]:
    """Runs, newest first, whose ids come before `before`."""
    rows = await connection.fetch(_LIST, wanted.state, wanted.slug, wanted.job, wanted.workflow_run_id, before, limit)
    return [_record(row) for row in rows]


_LOCK = """
    SELECT state, workflow_run_id, attempts, max_attempts, cancel_requested_at IS NOT NULL AS cancel_requested, lease
    FROM runner.runs
    WHERE id = $1
    FOR UPDATE
"""


async def lock_run(connection: Connection, run_id: str) -> LockedRun | None:
    """Lock the row of a run until the transaction ends; None where there is no such run."""
    row = await connection.fetchrow(_LOCK, run_id)
    return LockedRun(**{**dict(row), "state": RunState(row["state"])}) if row else None


_LEASE = """
    UPDATE runner.runs
    SET lease = $2,
        state = $3,
        attempts = $4,
        queued_ms = CASE WHEN state = 'queued' AND attempts < $4
                         THEN least(extract(epoch FROM now() - queued_at) * 1000, 2147483647)::int
                         ELSE queued_ms END,
        started_at = coalesce(started_at, now()),
        progress = NULL,
        progress_message = NULL
    WHERE id = $1
    RETURNING id, lease, slug, version, revision, digest, artifact, workflow_run_id, parameters, inputs, limits,
              attempts, max_attempts, queued_ms, created_by, request_id
"""


async def lease_run(connection: Connection, run_id: str, lease: UUID, *, state: RunState, attempts: int) -> Assignment:
    """Give the lease of a locked run to `lease`: as `starting` for an attempt, as `queued` only to finish it."""
    row = await connection.fetchrow(_LEASE, run_id, lease, state, attempts)
    if row is None:
        raise LookupError(run_id)
    return Assignment(**dict(row))


_LEASE_STATUS = """
    SELECT lease, cancel_requested_at IS NOT NULL AS cancel_requested FROM runner.runs WHERE id = $1
"""


async def lease_status(connection: Connection, run_id: str) -> LeaseStatus:
    """Who holds the lease just now."""
    row = await connection.fetchrow(_LEASE_STATUS, run_id)
    return LeaseStatus(**dict(row)) if row else LeaseStatus(None, cancel_requested=False)


_MARK_RUNNING = """
    UPDATE runner.runs SET state = 'running', first_byte_ms = $3, fetch_ms = $4, start_ms = $5
    WHERE id = $1 AND lease = $2 AND state = 'starting'
"""


async def mark_running(connection: Connection, run_id: str, lease: UUID, timings: Timings) -> None:
    """The handler was called."""
    await connection.execute(_MARK_RUNNING, run_id, lease, timings.first_byte_ms, timings.fetch_ms, timings.start_ms)


_SET_PROGRESS = """
    UPDATE runner.runs SET progress = $3, progress_message = $4
    WHERE id = $1 AND lease = $2 AND state IN ('starting', 'running')
"""


async def set_progress(
    connection: Connection, run_id: str, lease: UUID, fraction: float | None, message: str | None
) -> None:
    """How far the handler says it is."""
    await connection.execute(_SET_PROGRESS, run_id, lease, fraction, message)


# Giving a run back is no failure of the run: the attempt is counted, so that no two attempts have the same number, and
# the job gets another one for it.
_HAND_BACK = """
    UPDATE runner.runs
    SET state = 'queued', lease = NULL, queued_at = now(), max_attempts = max_attempts + 1, progress = NULL,
        progress_message = NULL
    WHERE id = $1 AND lease = $2 AND state IN ('starting', 'running')
    RETURNING id
"""


async def hand_back(connection: Connection, run_id: str, lease: UUID) -> bool:
    """Queue a run again that its runner has to leave; whether it was still held."""
    return await connection.fetchval(_HAND_BACK, run_id, lease) is not None


# A holder whose answer was lost asks again: the lease of a run that has ended is the one that ended it.
_FINISHED_BY = "SELECT 1 FROM runner.runs WHERE id = $1 AND lease = $2 AND finished_at IS NOT NULL"

_FINISH = """
    UPDATE runner.runs
    SET state = $3, result = $4, error = $5, first_byte_ms = $6, fetch_ms = $7, start_ms = $8, handler_ms = $9,
        upload_ms = $10, remove_ms = $11, log_key = $12, finished_at = now()
    WHERE id = $1 AND lease = $2 AND state IN ('queued', 'starting', 'running')
    RETURNING id
"""


async def finish_run(connection: Connection, run_id: str, lease: UUID, ending: Ending) -> bool:
    """Record how a run ended; whether the lease still held, so that this happened."""
    timings = ending.timings
    finished = await connection.fetchval(
        _FINISH,
        run_id,
        lease,
        ending.state,
        ending.result,
        ending.error,
        timings.first_byte_ms,
        timings.fetch_ms,
        timings.start_ms,
        timings.handler_ms,
        timings.upload_ms,
        timings.remove_ms,
        ending.log_key,
    )
    return finished is not None


async def finished_by(connection: Connection, run_id: str, lease: UUID) -> bool:
    """Whether a run has ended through the holder of `lease`."""
    return await connection.fetchval(_FINISHED_BY, run_id, lease) is not None


_CANCEL_QUEUED = """
    UPDATE runner.runs
    SET state = 'cancelled', cancel_requested_at = now(), finished_at = now(), lease = NULL, error = $2
    WHERE id = $1 AND state = 'queued'
"""

_REQUEST_CANCEL = """
    UPDATE runner.runs SET cancel_requested_at = now()
    WHERE id = $1 AND state IN ('starting', 'running') AND cancel_requested_at IS NULL
"""


async def cancel_queued_run(connection: Connection, run_id: str, error: dict[str, Any]) -> None:
    """End a locked run that no runner holds."""
    await connection.execute(_CANCEL_QUEUED, run_id, error)


async def request_cancel(connection: Connection, run_id: str) -> None:
    """Ask whoever holds a run to end it."""
    await connection.execute(_REQUEST_CANCEL, run_id)


async def notify_holder(connection: Connection, run_id: str) -> None:
    """Wake the holder of a run when the transaction commits."""
    await connection.execute("SELECT pg_notify($1, $2)", RUNS_CHANNEL, run_id)


@dataclass(frozen=True, slots=True)
class RecordedOutput:
    """An output of a run that has ended, and where it is in the bucket."""

    path: str
    size: int
    digest: str
    content_type: str
    object_key: str


_INSERT_OUTPUTS = """
    WITH recorded AS (DELETE FROM runner.uploads WHERE run_id = $1 AND attempt = $2)
    INSERT INTO runner.outputs (run_id, path, size, digest, content_type, object_key)
    SELECT $1, path, size, digest, content_type, object_key
    FROM unnest($3::text[], $4::bigint[], $5::text[], $6::text[], $7::text[])
         AS given (path, size, digest, content_type, object_key)
"""

_GET_OUTPUT = "SELECT path, size, digest, content_type, object_key FROM runner.outputs WHERE run_id = $1 AND path = $2"

_LIST_OUTPUTS = """
    SELECT path, size, digest, content_type, object_key
    FROM runner.outputs
    WHERE run_id = $1 AND ($2::text IS NULL OR path > $2 COLLATE "C")
    ORDER BY path
    LIMIT $3
"""

_OUTPUTS_BELOW = """
    SELECT path, size, digest, content_type, object_key
    FROM runner.outputs
    WHERE run_id = $1 AND starts_with(path, $2)
    ORDER BY path
"""


async def insert_outputs(connection: Connection, run_id: str, attempt: int, outputs: Sequence[Output]) -> None:
    """Record what an attempt has uploaded as what the run left, in the transaction that finishes it."""
    if outputs:
        await connection.execute(
            _INSERT_OUTPUTS,
            run_id,
            attempt,
            [output.path for output in outputs],
            [output.size for output in outputs],
            [output.digest for output in outputs],
            [output.content_type for output in outputs],
            [output_key(run_id, attempt, output.path) for output in outputs],
        )


async def get_output(connection: Connection, run_id: str, path: str) -> RecordedOutput | None:
    """One output, or None."""
    row = await connection.fetchrow(_GET_OUTPUT, run_id, path)
    return RecordedOutput(**dict(row)) if row else None


async def list_outputs(connection: Connection, run_id: str, *, after: str | None, limit: int) -> list[RecordedOutput]:
    """Outputs by path, from behind `after` on."""
    rows = await connection.fetch(_LIST_OUTPUTS, run_id, after, limit)
    return [RecordedOutput(**dict(row)) for row in rows]


async def outputs_below(connection: Connection, run_id: str, prefix: str) -> list[RecordedOutput]:
    """Every output whose path begins with `prefix`."""
    rows = await connection.fetch(_OUTPUTS_BELOW, run_id, prefix)
    return [RecordedOutput(**dict(row)) for row in rows]


_BEGIN_UPLOAD = """
    INSERT INTO runner.uploads (run_id, attempt, lease)
    SELECT id, attempts, lease FROM runner.runs WHERE id = $1 AND lease = $2 AND state IN ('starting', 'running')
    ON CONFLICT (run_id, attempt) DO UPDATE SET lease = excluded.lease
    RETURNING attempt
"""

_ABANDONED_UPLOADS = """
    SELECT uploads.run_id, uploads.attempt
    FROM runner.uploads
    JOIN runner.runs ON runs.id = uploads.run_id
    WHERE runs.lease IS DISTINCT FROM uploads.lease OR runs.finished_at IS NOT NULL
    LIMIT 100
"""

_FORGET_UPLOAD = "DELETE FROM runner.uploads WHERE run_id = $1 AND attempt = $2"


async def begin_upload(connection: Connection, run_id: str, lease: UUID) -> bool:
    """Write down that the holder of the lease is going to upload outputs; whether the lease still held."""
    return await connection.fetchval(_BEGIN_UPLOAD, run_id, lease) is not None


async def abandoned_uploads(connection: Connection) -> list[tuple[str, int]]:
    """Runs and attempts whose outputs were uploaded, in whole or in part, and will never be recorded."""
    return [(row["run_id"], row["attempt"]) for row in await connection.fetch(_ABANDONED_UPLOADS)]


async def forget_upload(connection: Connection, run_id: str, attempt: int) -> None:
    """What an attempt had uploaded is gone."""
    await connection.execute(_FORGET_UPLOAD, run_id, attempt)


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """How many runs wait for a runner, and how long the oldest of them has."""

    runs: int
    oldest_seconds: float


_QUEUE_DEPTH = """
    SELECT count(*) AS runs, coalesce(extract(epoch FROM now() - min(queued_at)), 0)::float8 AS oldest_seconds
    FROM runner.runs
    WHERE state = 'queued'
"""


async def queue_depth(connection: Connection) -> QueueDepth:
    """The queue as it is now."""
    row = await connection.fetchrow(_QUEUE_DEPTH)
    return QueueDepth(**dict(row)) if row else QueueDepth(0, 0.0)


@dataclass(frozen=True, slots=True)
class LeftLog:
    """A run that has ended and still has lines in the journal. `archived` says whether the bucket has its log."""

    run_id: str
    archived: bool


_LEFT_LOGS = """
    SELECT runs.id AS run_id, runs.log_key IS NOT NULL AS archived
    FROM (SELECT DISTINCT stream FROM runner.journal) AS streams
    JOIN runner.runs ON runs.id = streams.stream
    WHERE runs.finished_at < now() - $1 * interval '1 second'
    LIMIT 100
"""

_SET_LOG_KEY = "UPDATE runner.runs SET log_key = $2 WHERE id = $1 AND finished_at IS NOT NULL"


async def left_logs(connection: Connection, *, older_than_seconds: float) -> list[LeftLog]:
    """Runs that ended so long ago, and whose log is still in the journal."""
    return [LeftLog(**dict(row)) for row in await connection.fetch(_LEFT_LOGS, older_than_seconds)]


async def set_log_key(connection: Connection, run_id: str, key: str) -> None:
    """Where the log of a run that has ended is in the bucket."""
    await connection.execute(_SET_LOG_KEY, run_id, key)


def _record(row: Any) -> RunRecord:
    return RunRecord(**{**dict(row), "state": RunState(row["state"])})
