"""Definitions of jobs and workflows: two tables of the same shape."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from libs.common.database import Connection
from services.registry.store.bundles import like


class Kind(StrEnum):
    """What is defined."""

    JOB = "job"
    WORKFLOW = "workflow"


_TABLES = {Kind.JOB: "registry.jobs", Kind.WORKFLOW: "registry.workflows"}

# The tables are constants of ours. `xmax` is 0 in a row that this statement inserted.
_PUT = {
    kind: f"""
    INSERT INTO {table} AS old (slug, definition, updated_at, updated_by)
    VALUES ($1, $2, clock_timestamp(), $3)
    ON CONFLICT (slug) DO UPDATE
        SET definition = excluded.definition, revision = old.revision + 1,
            updated_at = excluded.updated_at, updated_by = excluded.updated_by
        WHERE old.definition IS DISTINCT FROM excluded.definition
    RETURNING xmax = 0 AS created
    """  # noqa: S608
    for kind, table in _TABLES.items()
}

_GET = {
    kind: f"SELECT slug, definition, revision, updated_at, updated_by FROM {table} WHERE slug = $1"  # noqa: S608
    for kind, table in _TABLES.items()
}

_LIST = {
    kind: f"""
    SELECT slug, definition, revision, updated_at, updated_by
    FROM {table}
    WHERE ($1::text IS NULL OR slug > $1) AND ($3::text[] IS NULL OR slug LIKE ANY ($3))
    ORDER BY slug
    LIMIT $2
    """  # noqa: S608
    for kind, table in _TABLES.items()
}


@dataclass(frozen=True, slots=True)
class Definition:
    """A job or workflow as it is kept."""

    slug: str
    definition: dict[str, Any]
    revision: int
    updated_at: datetime
    updated_by: str


async def put(connection: Connection, kind: Kind, slug: str, definition: dict[str, Any], *, actor: str) -> bool | None:
    """Keep a definition: True where it is new, False where it replaced another, None where it was there just so."""
    created: bool | None = await connection.fetchval(_PUT[kind], slug, definition, actor)
    return created


async def get(connection: Connection, kind: Kind, slug: str) -> Definition | None:
    """A definition."""
    row = await connection.fetchrow(_GET[kind], slug)
    return Definition(**dict(row)) if row else None


async def list_page(
    connection: Connection, kind: Kind, readable: list[str] | None, *, after: str | None, limit: int
) -> list[Definition]:
    """Definitions by slug, those after `after` that match a pattern of `readable`, where there are any."""
    rows = await connection.fetch(_LIST[kind], after, limit, like(readable))
    return [Definition(**dict(row)) for row in rows]
