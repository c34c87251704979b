"""Bundles."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from libs.common.database import Connection

# The newest version that is offered: releases before pre-releases, each by precedence.
_COLUMNS = """
    SELECT b.slug, b.display_name, b.description, b.metadata, b.immutable, b.allowed_platforms, b.created_at,
           b.created_by,
           (SELECT v.version
            FROM registry.versions v
            WHERE v.bundle_id = b.id AND v.status = 'active'
            ORDER BY v.prerelease, v.sort_key DESC
            LIMIT 1) AS latest
    FROM registry.bundles b
"""

_GET = f"{_COLUMNS} WHERE b.slug = $1"

_LIST = f"""
    {_COLUMNS}
    WHERE ($1::text IS NULL OR b.slug > $1) AND ($3::text[] IS NULL OR b.slug LIKE ANY ($3))
    ORDER BY b.slug
    LIMIT $2
"""

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('bundle ' || $1::text, 0))"

_ALLOWED_PLATFORMS = "SELECT allowed_platforms FROM registry.bundles WHERE slug = $1"

_SET = """
    UPDATE registry.bundles
    SET display_name = $2, description = $3, immutable = $4, allowed_platforms = $5
    WHERE slug = $1
"""

_INSERT = """
    INSERT INTO registry.bundles (slug, created_at, created_by)
    VALUES ($1, clock_timestamp(), $2)
    ON CONFLICT (slug) DO NOTHING
"""

_ID = "SELECT id FROM registry.bundles WHERE slug = $1"

_DESCRIBE = """
    UPDATE registry.bundles
    SET display_name = coalesce($2, display_name),
        description = coalesce($3, description),
        metadata = metadata || $4
    WHERE id = $1
      AND (display_name, description, metadata)
          IS DISTINCT FROM (coalesce($2, display_name), coalesce($3, description), metadata || $4)
"""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle; `latest` is None while no version is offered, `allowed_platforms` where the registry's policy holds."""

    slug: str
    display_name: str | None
    description: str | None
    metadata: dict[str, Any]
    immutable: bool
    allowed_platforms: list[str] | None
    created_at: datetime
    created_by: str
    latest: str | None


@dataclass(frozen=True, slots=True)
class Description:
    """What a publication says of its bundle; what is None or absent stays as it was."""

    display_name: str | None = None
    description: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def like(patterns: list[str] | None) -> list[str] | None:
    """Patterns of slugs as those of LIKE. Slugs have none of its other special characters."""
    return None if patterns is None else [pattern.replace("*", "%") for pattern in patterns]


async def get(connection: Connection, slug: str) -> Bundle | None:
    """The bundle with this slug."""
    row = await connection.fetchrow(_GET, slug)
    return Bundle(**dict(row)) if row else None


async def list_page(
    connection: Connection, readable: list[str] | None, *, after: str | None, limit: int
) -> list[Bundle]:
    """Bundles by slug, those after `after` that match a pattern of `readable`, where there are any."""
    rows = await connection.fetch(_LIST, after, limit, like(readable))
    return [Bundle(**dict(row)) for row in rows]


async def lock(connection: Connection, slug: str) -> None:
    """Be the only one who changes this bundle's settings, while nobody publishes to it, until the transaction ends."""
    await connection.execute(_LOCK, slug)


async def allowed_platforms(connection: Connection, slug: str) -> list[str] | None:
    """For which platforms the bundle may be published; None where it does not say so, or does not exist."""
    found: list[str] | None = await connection.fetchval(_ALLOWED_PLATFORMS, slug)
    return found


async def set_settings(connection: Connection, bundle: Bundle) -> None:
    """Write what can be set of a bundle: its names, whether it is immutable, and its platforms."""
    await connection.execute(
        _SET, bundle.slug, bundle.display_name, bundle.description, bundle.immutable, bundle.allowed_platforms
    )


async def ensure(connection: Connection, slug: str, *, actor: str, description: Description) -> int:
    """The id of the bundle, which is created if need be and described as given."""
    await connection.execute(_INSERT, slug, actor)
    identifier: int = await connection.fetchval(_ID, slug)
    await connection.execute(
        _DESCRIBE, identifier, description.display_name, description.description, description.metadata
    )
    return identifier
