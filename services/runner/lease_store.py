"""Leases of runs in PostgreSQL, and the attempts that are made under them.

Each statement that changes a run on behalf of its holder names the lease, and says whether it still held.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from libs.common.database import Connection
from libs.common.models import AttemptState, RunState
from services.runner.store import Assignment, Ending


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt at a run. `runner` is the machine and process that made it."""

    number: int
    state: AttemptState
    runner: str
    error: dict[str, Any] | None
    started_at: datetime
    ended_at: datetime | None


# To ask again with the same lease begins no second attempt. What an earlier holder had begun is lost now.
_LEASE = """
    WITH lost AS (
        UPDATE runner.attempts SET state = 'lost', ended_at = now()
        WHERE run_id = $1 AND ended_at IS NULL AND (number < $4 OR $3 = 'queued')
    ), begun AS (
        INSERT INTO runner.attempts (run_id, number, runner) SELECT $1, $4, $5 WHERE $3 = 'starting'
        ON CONFLICT (run_id, number) DO NOTHING
    ), writes AS (
        INSERT INTO runner.log_writers (run_id, lease) VALUES ($1, $2) ON CONFLICT DO NOTHING
    )
    UPDATE runner.runs
    SET lease = $2,
        state = $3::text::runner.run_state,
        attempts = $4,
        queued_ms = CASE WHEN state = 'queued' AND attempts < $4
                         THEN greatest(0, least(extract(epoch FROM now() - queued_at) * 1000, 2147483647))::int
                         ELSE queued_ms END,
        max_attempts = CASE WHEN $3 = 'queued' AND cancel_requested_at IS NULL THEN $4 ELSE max_attempts END,
        next_attempt_at = NULL,
        started_at = coalesce(started_at, now()),
        progress = NULL,
        progress_message = NULL
    WHERE id = $1
    RETURNING id, lease, slug, version, revision, digest, artifact, workflow_run_id, turn_scope, parameters,
              inputs, limits, secrets, retry, attempts, max_attempts, queued_ms, created_by, request_id,
              clock_timestamp() AS leased_at
"""


async def lease_run(
    connection: Connection, run_id: str, lease: UUID, *, state: RunState, attempts: int, runner: str
) -> Assignment:
    """Give the lease of a locked run to `lease`: as `starting` for an attempt, as `queued` only to finish it."""
    row = await connection.fetchrow(_LEASE, run_id, lease, state, attempts, runner)
    if row is None:
        raise LookupError(run_id)
    return Assignment(**dict(row))


# Giving a run back is no failure of the run: the attempt is counted, so that no two attempts have the same number, and
# the job gets another one for it.
_HAND_BACK = """
    WITH given AS (
        UPDATE runner.runs
        SET state = 'queued', lease = NULL, queued_at = now(), max_attempts = max_attempts + 1, progress = NULL,
            progress_message = NULL
        WHERE id = $1 AND lease = $2 AND state IN ('starting', 'running')
        RETURNING id, attempts
    ), ended AS (
        UPDATE runner.attempts SET state = 'handed_back', ended_at = now()
        FROM given WHERE run_id = given.id AND number = given.attempts
    )
    SELECT id FROM given
"""


async def hand_back(connection: Connection, run_id: str, lease: UUID) -> bool:
    """Queue a run again that its runner has to leave; whether it was still held."""
    return await connection.fetchval(_HAND_BACK, run_id, lease) is not None


# `attempts` tells a retry whose answer was lost from one that came too late.
_TRY_AGAIN = """
    WITH queued AS (
        UPDATE runner.runs
        SET state = 'queued', lease = NULL, error = $4, next_attempt_at = now() + $5 * interval '1 second',
            queued_at = now() + $5 * interval '1 second', progress = NULL, progress_message = NULL
        WHERE id = $1 AND lease = $2 AND state IN ('starting', 'running') AND cancel_requested_at IS NULL
        RETURNING id
    ), ended AS (
        UPDATE runner.attempts SET state = $6::text::runner.attempt_state, error = $4, ended_at = now()
        FROM queued WHERE run_id = queued.id AND number = $3
    )
    SELECT id FROM queued
    UNION ALL
    SELECT run_id FROM runner.attempts WHERE run_id = $1 AND number = $3 AND state = $6::text::runner.attempt_state
"""


async def try_again(
    connection: Connection, run: Assignment, state: RunState, error: dict[str, Any], *, after_seconds: float
) -> bool:
    """Queue a run for another attempt, since this one ended in `state`.

    False where the lease was lost, or somebody wants the run to end.
    """
    found = await connection.fetchval(_TRY_AGAIN, run.id, run.lease, run.attempts, error, after_seconds, state)
    return found is not None


_LIST_ATTEMPTS = """
    SELECT number, state, runner, error, started_at, ended_at
    FROM runner.attempts
    WHERE run_id = $1 AND number > $2::bigint
    ORDER BY number
    LIMIT $3
"""


async def list_attempts(connection: Connection, run_id: str, *, after: int, limit: int) -> list[AttemptRecord]:
    """The attempts at a run in order, from behind number `after` on."""
    rows = await connection.fetch(_LIST_ATTEMPTS, run_id, after, limit)
    return [AttemptRecord(**{**dict(row), "state": AttemptState(row["state"])}) for row in rows]


# A holder whose answer was lost asks again: the lease of a run that has ended is the one that ended it.
_FINISHED_BY = "SELECT 1 FROM runner.runs WHERE id = $1 AND lease = $2 AND finished_at IS NOT NULL"

_FINISH = """
    WITH finished AS (
        UPDATE runner.runs
        SET state = $3::text::runner.run_state, result = $4, error = $5, first_byte_ms = $6, fetch_ms = $7,
            start_ms = $8, handler_ms = $9, upload_ms = $10, remove_ms = $11, log_key = $12,
            sandbox = $13, finished_at = now()
        WHERE id = $1 AND lease = $2 AND state IN ('queued', 'starting', 'running')
        RETURNING id, attempts
    ), ended AS (
        UPDATE runner.attempts SET state = $3::text::runner.attempt_state, error = $5, ended_at = now()
        FROM finished WHERE run_id = finished.id AND number = finished.attempts AND ended_at IS NULL
    ), written AS (
        DELETE FROM runner.log_writers USING finished
        WHERE run_id = finished.id AND lease = $2 AND $12::text IS NOT NULL
    )
    SELECT id FROM finished
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
        ending.sandbox,
    )
    return finished is not None


async def finished_by(connection: Connection, run_id: str, lease: UUID) -> bool:
    """Whether a run has ended through the holder of `lease`."""
    return await connection.fetchval(_FINISHED_BY, run_id, lease) is not None


_HELD_LEASES = """
    SELECT id, CASE WHEN state IN ('starting', 'running') THEN lease END AS lease FROM runner.runs WHERE id = ANY ($1)
"""


async def held_leases(connection: Connection, runs: Collection[str]) -> dict[str, str | None]:
    """Of those runs that there are, under which lease an attempt at each is being made; None where none is."""
    rows = await connection.fetch(_HELD_LEASES, list(runs))
    return {row["id"]: None if row["lease"] is None else str(row["lease"]) for row in rows}
