"""Artifacts that nothing keeps, and the upkeep that one registry does at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from libs.common.database import Connection

# $1 revisions that are kept of each version, all where it is null; $2 days since the last use; $3 seconds of grace.
_NOTHING_KEEPS_IT = """
    artifacts.collected_at IS NULL
    AND artifacts.stored_at <= now() - $3 * interval '1 second'
    AND (artifacts.last_used_at IS NULL OR artifacts.last_used_at <= now() - $2 * interval '1 day')
    AND NOT EXISTS (
        SELECT FROM registry.revisions
        JOIN registry.versions ON versions.id = revisions.version_id
        WHERE revisions.digest = artifacts.digest
          AND ($1::integer IS NULL OR revisions.revision > versions.revision - $1)
    )
"""

_IS_DUE = """
    (artifacts.gc_claimed_at IS NOT NULL OR artifacts.gc_marked_at <= now() - $3 * interval '1 second')
"""

_LIST_DIGESTS = """
    SELECT digest FROM registry.artifacts WHERE collected_at IS NULL AND digest > $1 ORDER BY digest LIMIT 1000
"""

_LIST = f"""
    SELECT artifacts.digest, artifacts.size, artifacts.last_used_at,
           {_IS_DUE} IS TRUE AS due,
           (SELECT array_agg(DISTINCT bundles.slug || '@' || versions.version)
            FROM registry.revisions
            JOIN registry.versions ON versions.id = revisions.version_id
            JOIN registry.bundles ON bundles.id = versions.bundle_id
            WHERE revisions.digest = artifacts.digest) AS versions
    FROM registry.artifacts
    WHERE digest = ANY($4::text[])
      AND ((artifacts.gc_claimed_at IS NOT NULL AND artifacts.collected_at IS NULL) OR ({_NOTHING_KEEPS_IT}))
    ORDER BY artifacts.digest
"""  # noqa: S608  # constants

_MARK = f"""
    UPDATE registry.artifacts
    SET gc_marked_at = CASE WHEN gc_marked_at IS NULL THEN now() END
    WHERE digest = ANY($4::text[]) AND gc_claimed_at IS NULL AND collected_at IS NULL
      AND (gc_marked_at IS NULL) = ({_NOTHING_KEEPS_IT})
    RETURNING digest, gc_marked_at IS NOT NULL AS marked
"""  # noqa: S608  # constants

_CLAIM = f"""
    UPDATE registry.artifacts SET gc_claimed_at = coalesce(gc_claimed_at, now())
    WHERE digest = $4 AND collected_at IS NULL AND {_IS_DUE} AND (gc_claimed_at IS NOT NULL OR ({_NOTHING_KEEPS_IT}))
    RETURNING object_key
"""  # noqa: S608  # constants

_FINISH = """
    UPDATE registry.artifacts
    SET collected_at = now(), collection_policy = $2, gc_marked_at = NULL, gc_claimed_at = NULL
    WHERE digest = $1
"""

_NAMED = """
    SELECT object_key FROM registry.artifacts WHERE digest = ANY($1::text[]) AND collected_at IS NULL
"""

_IS_DUE_AGAIN = """
    SELECT NOT EXISTS (
        SELECT FROM registry.upkeep WHERE name = $1 AND ended_at > now() - $2 * interval '1 second'
    )
"""

_END = """
    INSERT INTO registry.upkeep (name, ended_at) VALUES ($1, now()) ON CONFLICT (name) DO UPDATE SET ended_at = now()
"""


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept. Of each version the last `keep_revisions`, the current one among them, or all where it is None;
    what runs used in the last `keep_used_days`; and what was stored, or given up, within `grace_seconds`.
    """

    keep_revisions: int | None
    keep_used_days: float
    grace_seconds: float

    def __str__(self) -> str:
        kept = "every revision" if self.keep_revisions is None else f"the last {self.keep_revisions} revisions"
        return f"keep {kept} of each version and what runs used in the last {self.keep_used_days:g} days"


@dataclass(frozen=True, slots=True)
class Candidate:
    """An artifact that nothing keeps. `due`: it has waited for its grace. `versions` have it in their past."""

    digest: str
    size: int
    last_used_at: datetime | None
    due: bool
    versions: list[str]


async def list_digests(connection: Connection, *, after: str) -> list[str]:
    """Artifacts that were not collected by digest, some of those that come behind `after`."""
    return [row["digest"] for row in await connection.fetch(_LIST_DIGESTS, after)]


async def list_candidates(connection: Connection, retention: Retention, digests: Sequence[str]) -> list[Candidate]:
    """Those of these artifacts that nothing keeps, or that were begun to be collected."""
    rows = await connection.fetch(_LIST, *_parameters(retention), list(digests))
    return [Candidate(**{**dict(row), "versions": row["versions"] or []}) for row in rows]


async def mark(connection: Connection, retention: Retention, digests: Sequence[str]) -> set[str]:
    """Of these, mark what nothing keeps, and unmark what something keeps again; the digests that were marked now."""
    rows = await connection.fetch(_MARK, *_parameters(retention), list(digests))
    return {row["digest"] for row in rows if row["marked"]}


async def claim(connection: Connection, digest: str, retention: Retention) -> str | None:
    """From here on nobody begins to use the artifact; its object's key, or None where something keeps it after all.

    Under the lock on the artifact.
    """
    key: str | None = await connection.fetchval(_CLAIM, *_parameters(retention), digest)
    return key


async def finish(connection: Connection, digest: str, policy: str) -> None:
    """Record that the object of a claimed artifact is gone."""
    await connection.execute(_FINISH, digest, policy)


async def named_keys(connection: Connection, digests: Sequence[str]) -> set[str]:
    """The keys of those of these artifacts whose object should be in the bucket."""
    return {row["object_key"] for row in await connection.fetch(_NAMED, list(digests))}


async def is_due(connection: Connection, name: str, *, interval_seconds: float) -> bool:
    """Whether the work `name` came to its last end so long ago, or never."""
    due: bool = await connection.fetchval(_IS_DUE_AGAIN, name, interval_seconds)
    return due


async def end(connection: Connection, name: str) -> None:
    """Record that the work `name` was done."""
    await connection.execute(_END, name)


def _parameters(retention: Retention) -> tuple[Any, ...]:
    return retention.keep_revisions, retention.keep_used_days, retention.grace_seconds
