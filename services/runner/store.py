"""Runs in PostgreSQL.

Whoever executes a run holds a lease on it. Every statement that writes to a run on behalf of an attempt names the lease
and says whether it still held.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from libs.common.database import Connection
from libs.common.models import RunState

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
    secrets: list[str]
    retry: dict[str, Any]
    max_attempts: int
    priority: int
    concurrency_key: str | None
    max_running: int | None
    turn_scope: str | None
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
    sandbox: dict[str, Any] | None
    log_key: str | None
    next_attempt_at: datetime | None
    priority: int
    concurrency_key: str | None
    created_at: datetime
    created_by: str
    started_at: datetime | None
    finished_at: datetime | None
    expired_at: datetime | None


@dataclass(frozen=True, slots=True)
class LockedRun:
    """What decides what may be done with a run, while its row is locked."""

    state: RunState
    workflow_run_id: str | None
    attempts: int
    max_attempts: int
    retry: dict[str, Any]
    wait_seconds: float
    turn_scope: str | None
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
    turn_scope: str | None
    parameters: dict[str, Any]
    inputs: dict[str, Any]
    limits: dict[str, Any]
    secrets: list[str]
    retry: dict[str, Any]
    attempts: int
    max_attempts: int
    queued_ms: int | None
    created_by: str
    request_id: str | None
    leased_at: datetime


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
    sandbox: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs to list."""

    state: RunState | None = None
    slug: str | None = None
    job: str | None = None
    workflow_run_id: str | None = None


_INSERT = """
    INSERT INTO runner.runs (id, slug, version, revision, digest, artifact, job, workflow_run_id, step, parameters,
                             inputs, limits, secrets, retry, max_attempts, priority, concurrency_key, max_running,
                             turn_scope, has_turn, created_by, request_id)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19,
            CASE WHEN $19::text IS NOT NULL THEN false END, $20, $21)
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
        run.secrets,
        run.retry,
        run.max_attempts,
        run.priority,
        run.concurrency_key,
        run.max_running,
        run.turn_scope,
        run.created_by,
        run.request_id,
    )


_SHOWN = """
    id, state, slug, version, revision, digest, job, workflow_run_id, step, parameters, inputs, result, error, progress,
    progress_message, attempts, queued_ms, first_byte_ms, fetch_ms, start_ms, handler_ms, upload_ms, remove_ms, sandbox,
    log_key, next_attempt_at, priority, concurrency_key, created_at, created_by, started_at, finished_at,
    expired_at
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
    SELECT state, workflow_run_id, attempts, max_attempts, retry, turn_scope,
           greatest(0, coalesce(extract(epoch FROM next_attempt_at - now()), 0))::float8 AS wait_seconds,
           cancel_requested_at IS NOT NULL AS cancel_requested, lease
    FROM runner.runs
    WHERE id = $1
    FOR UPDATE
"""


async def lock_run(connection: Connection, run_id: str) -> LockedRun | None:
    """Lock the row of a run until the transaction ends; None where there is no such run."""
    row = await connection.fetchrow(_LOCK, run_id)
    return LockedRun(**{**dict(row), "state": RunState(row["state"])}) if row else None


_LEASE_STATUSES = """
    SELECT id, lease, cancel_requested_at IS NOT NULL AS cancel_requested FROM runner.runs WHERE id = ANY($1::text[])
"""


async def lease_statuses(connection: Connection, run_ids: Collection[str]) -> dict[str, LeaseStatus]:
    """Who holds the leases of these runs just now; without those that are not there."""
    rows = await connection.fetch(_LEASE_STATUSES, list(run_ids))
    return {row["id"]: LeaseStatus(row["lease"], cancel_requested=row["cancel_requested"]) for row in rows}


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


_CANCEL_QUEUED = """
    UPDATE runner.runs
    SET state = 'cancelled', cancel_requested_at = now(), finished_at = now(), lease = NULL, error = $2,
        next_attempt_at = NULL
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


def _record(row: Any) -> RunRecord:
    return RunRecord(**{**dict(row), "state": RunState(row["state"])})
