"""Runs whose log and outputs were kept long enough, and the artifacts that runs still need."""

from collections.abc import Sequence

from libs.common.database import Connection

_OPEN = "('queued', 'starting', 'running')"

# An id may also stand in parameters of a workflow run, from which a template makes an input.
_NEEDED = f"""
    SELECT DISTINCT named[1] AS run_id
    FROM (
        SELECT inputs::text AS words FROM runner.runs WHERE state IN {_OPEN}
        UNION ALL
        SELECT parameters::text FROM runner.workflow_runs WHERE state = 'running'
        UNION ALL
        SELECT steps.definition::text
        FROM runner.workflow_steps AS steps
        JOIN runner.workflow_runs ON workflow_runs.id = steps.workflow_run_id AND workflow_runs.state = 'running'
    ) AS texts, regexp_matches(words, 'run_[0-9a-f]+', 'g') AS named
"""  # noqa: S608  # a constant

_EXPIRABLE = """
    SELECT runs.id
    FROM runner.runs
    LEFT JOIN runner.workflow_runs ON workflow_runs.id = runs.workflow_run_id
    WHERE runs.finished_at < now() - $1 * interval '1 day' AND runs.expired_at IS NULL
      AND workflow_runs.state IS DISTINCT FROM 'running'
      AND runs.id > $2 AND runs.id <> ALL($3::text[])
    ORDER BY runs.id
    LIMIT 100
"""

_SET_EXPIRED = "UPDATE runner.runs SET expired_at = now() WHERE id = $1 AND finished_at IS NOT NULL"

_ARTIFACTS_IN_USE = f"""
    SELECT digest FROM runner.runs WHERE state IN {_OPEN}
    UNION
    SELECT steps.resolution -> 'artifact' ->> 'digest'
    FROM runner.workflow_steps AS steps
    JOIN runner.workflow_runs ON workflow_runs.id = steps.workflow_run_id AND workflow_runs.state = 'running'
    WHERE steps.state = 'waiting'
    ORDER BY 1
"""  # noqa: S608  # a constant


async def needed_runs(connection: Connection) -> list[str]:
    """Runs whose outputs are, or may become, inputs of runs and workflow runs that have not ended."""
    return [row["run_id"] for row in await connection.fetch(_NEEDED)]


async def list_expirable(connection: Connection, days: float, *, after: str, needed: Sequence[str]) -> list[str]:
    """Some of the runs that ended so long ago and still have their objects, by id from behind `after` on."""
    return [row["id"] for row in await connection.fetch(_EXPIRABLE, days, after, list(needed))]


async def set_expired(connection: Connection, run_id: str) -> None:
    """Record that log and outputs of a run are gone."""
    await connection.execute(_SET_EXPIRED, run_id)


async def artifacts_in_use(connection: Connection) -> list[str]:
    """Digests of the artifacts that runs which have not ended, and steps that wait, are pinned to."""
    return [row["digest"] for row in await connection.fetch(_ARTIFACTS_IN_USE)]
