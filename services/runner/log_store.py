"""Logs of runs in PostgreSQL: those that are still in the journal, and who may have put one into the bucket."""

from dataclasses import dataclass
from uuid import UUID

from libs.common.database import Connection


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

_ABANDONED_LOGS = """
    SELECT log_writers.run_id, log_writers.lease
    FROM runner.log_writers
    JOIN runner.runs ON runs.id = log_writers.run_id
    WHERE runs.finished_at < now() - $1 * interval '1 second'
    LIMIT 100
"""

_FORGET_LOG = "DELETE FROM runner.log_writers WHERE run_id = $1 AND lease = $2"

_SET_LOG_KEY = "UPDATE runner.runs SET log_key = $2 WHERE id = $1 AND finished_at IS NOT NULL"


async def left_logs(connection: Connection, *, older_than_seconds: float) -> list[LeftLog]:
    """Runs that ended so long ago, and whose log is still in the journal."""
    return [LeftLog(**dict(row)) for row in await connection.fetch(_LEFT_LOGS, older_than_seconds)]


async def abandoned_logs(connection: Connection, *, older_than_seconds: float) -> list[tuple[str, UUID]]:
    """Runs that ended so long ago, and leases whose holders may have archived a log that is not the run's."""
    rows = await connection.fetch(_ABANDONED_LOGS, older_than_seconds)
    return [(row["run_id"], row["lease"]) for row in rows]


async def forget_log(connection: Connection, run_id: str, lease: UUID) -> None:
    """What the holder of a lease had archived is gone."""
    await connection.execute(_FORGET_LOG, run_id, lease)


async def set_log_key(connection: Connection, run_id: str, key: str) -> None:
    """Where the log of a run that has ended is in the bucket."""
    await connection.execute(_SET_LOG_KEY, run_id, key)
