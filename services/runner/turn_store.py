"""Turns and the length of the queue in PostgreSQL.

A run with a concurrency key, or of a job that bounds how many of its runs go at a time, waits in the queue where no
worker looks until it is its turn. It keeps its turn until it ends. Turns of one scope are given under one lock.
"""

from libs.common.database import Connection
from libs.common.queue import give_way

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('turns ' || $1::text, 0))"

_NEXT = """
    UPDATE runner.runs
    SET has_turn = true
    WHERE id = (
        SELECT waiting.id
        FROM runner.runs AS waiting
        WHERE waiting.turn_scope = $1 AND NOT waiting.has_turn AND waiting.finished_at IS NULL
          AND (waiting.max_running IS NULL OR waiting.max_running > (
                  SELECT count(*) FROM runner.runs AS going
                  WHERE going.turn_scope = $1 AND going.has_turn AND going.finished_at IS NULL))
          AND (waiting.concurrency_key IS NULL OR NOT EXISTS (
                  SELECT FROM runner.runs AS going
                  WHERE going.turn_scope = $1 AND going.concurrency_key = waiting.concurrency_key
                    AND going.has_turn AND going.finished_at IS NULL))
        ORDER BY waiting.priority DESC, waiting.id
        LIMIT 1
    ) AND NOT has_turn AND finished_at IS NULL
    RETURNING id
"""

_SCOPES = "SELECT DISTINCT turn_scope FROM runner.runs WHERE NOT has_turn AND finished_at IS NULL"

_QUEUED = "SELECT count(*) FROM (SELECT FROM runner.runs WHERE state = 'queued' LIMIT $1) AS queued"

_QUEUED_OF_JOB = """
    SELECT count(*) FROM (SELECT FROM runner.runs WHERE state = 'queued' AND job = $1 LIMIT $2) AS queued
"""


async def lock_scope(connection: Connection, scope: str) -> None:
    """Let nobody else decide about the runs of a scope until the transaction ends.

    Only one scope may be locked in a transaction: two that lock in different order would wait for each other.
    """
    await connection.execute(_LOCK, scope)


async def give_next_turn(connection: Connection, scope: str) -> bool:
    """Let the first run of a locked scope that can go come up in the queue; whether there was one."""
    run_id = await connection.fetchval(_NEXT, scope)
    if run_id is None:
        return False
    await give_way(connection, run_id)
    return True


async def scopes_with_waiting_runs(connection: Connection) -> list[str]:
    """Where runs wait for their turn."""
    return [row["turn_scope"] for row in await connection.fetch(_SCOPES)]


async def count_queued(connection: Connection, *, limit: int) -> int:
    """How many runs are queued; no more than `limit` are counted."""
    count: int = await connection.fetchval(_QUEUED, limit)
    return count


async def count_queued_of_job(connection: Connection, job: str, *, limit: int) -> int:
    """How many runs of a job are queued; no more than `limit` are counted."""
    count: int = await connection.fetchval(_QUEUED_OF_JOB, job, limit)
    return count
