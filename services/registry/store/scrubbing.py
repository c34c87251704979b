"""What a scrub has to look at, and how far it is."""

from dataclasses import dataclass
from typing import Any

from libs.common.database import Connection

SCRUB = "scrub"

_PAGE = """
    SELECT digest, size, object_key, damaged_at IS NOT NULL AS known_damaged
    FROM registry.artifacts
    WHERE collected_at IS NULL AND gc_claimed_at IS NULL AND digest > $1
    ORDER BY digest
    LIMIT 100
"""

_DAMAGED = """
    SELECT artifacts.digest, artifacts.damage,
           (SELECT other.digest FROM registry.artifacts AS other
            WHERE other.content_digest = artifacts.content_digest AND other.digest <> artifacts.digest
              AND other.collected_at IS NULL AND other.gc_claimed_at IS NULL AND other.damaged_at IS NULL
            ORDER BY other.created_at
            LIMIT 1) AS equal_digest,
           (SELECT array_agg(DISTINCT bundles.slug || '@' || versions.version)
            FROM registry.revisions
            JOIN registry.versions ON versions.id = revisions.version_id
            JOIN registry.bundles ON bundles.id = versions.bundle_id
            WHERE revisions.digest = artifacts.digest) AS versions
    FROM registry.artifacts
    WHERE artifacts.damaged_at IS NOT NULL AND artifacts.collected_at IS NULL
    ORDER BY artifacts.digest
"""

# One that did not come to its end is gone on with.
_BEGIN = """
    INSERT INTO registry.upkeep (name) VALUES ($1)
    ON CONFLICT (name) DO UPDATE SET
        began_at = CASE WHEN upkeep.ended_at IS NULL THEN upkeep.began_at ELSE now() END,
        progress = CASE WHEN upkeep.ended_at IS NULL THEN upkeep.progress ELSE '{}' END,
        ended_at = NULL
    RETURNING progress
"""

_SAVE = "UPDATE registry.upkeep SET progress = $2 WHERE name = $1"


@dataclass(frozen=True, slots=True)
class Listed:
    """An artifact whose object should be in the bucket. `known_damaged`: it is quarantined already."""

    digest: str
    size: int
    object_key: str
    known_damaged: bool


@dataclass(frozen=True, slots=True)
class Damaged:
    """A quarantined artifact; `equal_digest` is one with the same content that can be had, if there is any."""

    digest: str
    damage: str
    equal_digest: str | None
    versions: list[str]


async def list_from(connection: Connection, *, after: str) -> list[Listed]:
    """Artifacts by digest, some of those that come behind `after`."""
    return [Listed(**dict(row)) for row in await connection.fetch(_PAGE, after)]


async def list_damaged(connection: Connection) -> list[Damaged]:
    """Every artifact that is quarantined."""
    rows = await connection.fetch(_DAMAGED)
    return [Damaged(**{**dict(row), "versions": row["versions"] or []}) for row in rows]


async def begin(connection: Connection) -> dict[str, Any]:
    """Begin a scrub, or go on with one that did not come to its end: its progress, empty at the beginning."""
    progress: dict[str, Any] = await connection.fetchval(_BEGIN, SCRUB)
    return progress


async def save(connection: Connection, progress: dict[str, Any]) -> None:
    """Record how far the scrub is."""
    await connection.execute(_SAVE, SCRUB, progress)
