"""Outputs of runs in PostgreSQL: those that are recorded, and the uploads that may become them."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from libs.common.database import Connection
from libs.common.models import Output
from libs.common.objects import output_key


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

_FORGET_UPLOAD = """
    DELETE FROM runner.uploads USING runner.runs
    WHERE run_id = $1 AND attempt = $2 AND runs.id = run_id AND runs.finished_at < now() - $3 * interval '1 second'
"""


async def begin_upload(connection: Connection, run_id: str, lease: UUID) -> bool:
    """Write down that the holder of the lease is going to upload outputs; whether the lease still held."""
    return await connection.fetchval(_BEGIN_UPLOAD, run_id, lease) is not None


async def abandoned_uploads(connection: Connection) -> list[tuple[str, int]]:
    """Runs and attempts whose outputs were uploaded, in whole or in part, and will never be recorded."""
    return [(row["run_id"], row["attempt"]) for row in await connection.fetch(_ABANDONED_UPLOADS)]


async def forget_upload(connection: Connection, run_id: str, attempt: int, *, ended_before_seconds: float) -> None:
    """What an attempt had uploaded is gone; forget it where the run ended so long ago that no more will come."""
    await connection.execute(_FORGET_UPLOAD, run_id, attempt, ended_before_seconds)
