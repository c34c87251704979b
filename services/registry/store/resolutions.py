"""What a reference means right now: a revision with its artifact, in one statement."""

from collections.abc import Hashable
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from libs.common.database import Connection
from services.registry.store import artifacts
from services.registry.store.artifacts import Artifact
from services.registry.store.versions import NEWEST_FIRST, OF_BUNDLE

_COLUMNS = f"""
    SELECT v.version, r.revision, v.status, v.status_reason, v.status_by, v.status_at, {artifacts.COLUMNS}
    FROM registry.versions v
    JOIN registry.revisions r ON r.version_id = v.id
    JOIN registry.artifacts a ON a.digest = r.digest
    WHERE {OF_BUNDLE}
"""  # noqa: S608  # constants of ours

_BY_VERSION = f"{_COLUMNS} AND v.version = $2 AND r.revision = v.revision"

_LATEST = f"{_COLUMNS} AND v.status = 'active' AND r.revision = v.revision ORDER BY {NEWEST_FIRST} LIMIT 1"

# Were the same bytes in several versions, the strictest status would hold for them.
_BY_DIGEST = f"""
    {_COLUMNS} AND r.digest = $2
    ORDER BY v.status = 'quarantined' DESC, v.status = 'yanked' DESC, r.published_at DESC, r.revision DESC
    LIMIT 1
"""

_NAME_COLUMNS = 6
"""How many columns come before those of the artifact. They are in the order of the fields."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """A revision of a version, whether that version is offered, and the artifact."""

    slug: str
    version: str
    revision: int
    status: str
    status_reason: str | None
    status_by: str | None
    status_at: datetime | None
    artifact: Artifact

    @property
    def identity(self) -> Hashable:
        """What is equal of two resolutions that say the same: an artifact is told by its digest and its row's time."""
        return (
            self.slug,
            self.version,
            self.revision,
            self.status,
            self.status_reason,
            self.status_by,
            self.status_at,
            self.artifact.digest,
            self.artifact.created_at,
        )


async def by_version(connection: Connection, slug: str, version: str) -> Resolution | None:
    """The current revision of a version."""
    return _resolution(slug, await connection.fetchrow(_BY_VERSION, slug, version))


async def latest(connection: Connection, slug: str) -> Resolution | None:
    """The current revision of the highest version that is offered; of a pre-release only where there is no release."""
    return _resolution(slug, await connection.fetchrow(_LATEST, slug))


async def by_digest(connection: Connection, slug: str, digest: str) -> Resolution | None:
    """The newest revision of the bundle that is or was this artifact."""
    return _resolution(slug, await connection.fetchrow(_BY_DIGEST, slug, digest))


def _resolution(slug: str, row: asyncpg.Record | None) -> Resolution | None:
    if row is None:
        return None
    version, revision, status, reason, by, at = row[:_NAME_COLUMNS]
    return Resolution(slug, version, revision, status, reason, by, at, Artifact(*row[_NAME_COLUMNS:]))
