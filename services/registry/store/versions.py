"""Versions and their revisions."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from libs.common.database import Connection
from libs.common.identifiers import is_prerelease, version_sort_key
from libs.common.models import VersionStatus

# In this order: who changes the settings of the bundle waits for all who are at one of its versions, and they for him.
_LOCK = """
    SELECT pg_advisory_xact_lock_shared(hashtextextended('bundle ' || $1::text, 0)),
           pg_advisory_xact_lock(hashtextextended('version ' || $1::text || '@' || $2::text, 0))
"""

# `now` is the current revision, `first` the one that made the version.
_COLUMNS = """
    SELECT v.id, b.slug, v.version, v.sort_key, v.revision, v.status, v.status_reason, v.status_by, v.status_at,
           v.immutable, b.immutable AS bundle_immutable,
           a.digest, a.content_digest, a.size, a.unpacked_size, a.file_count, a.compression, a.object_key, a.platforms,
           a.manifest,
           first.published_at, first.published_by,
           CASE WHEN v.revision > 1 THEN now.published_at END AS replaced_at,
           CASE WHEN v.revision > 1 THEN now.published_by END AS replaced_by,
           CASE WHEN v.revision > 1 THEN now.reason END AS reason,
           now.previous_digest
    FROM registry.bundles b
    JOIN registry.versions v ON v.bundle_id = b.id
    JOIN registry.revisions now ON now.version_id = v.id AND now.revision = v.revision
    JOIN registry.revisions first ON first.version_id = v.id AND first.revision = 1
    JOIN registry.artifacts a ON a.digest = now.digest
"""

_FIND = f"{_COLUMNS} WHERE b.slug = $1 AND v.version = $2"

# The bundle's id as a value of its own, not by the join: only then are the indexes read in order, and no further.
OF_BUNDLE = "v.bundle_id = (SELECT id FROM registry.bundles WHERE slug = $1)"

NEWEST_FIRST = "v.prerelease, v.sort_key DESC"
"""The order of versions that are offered: releases before pre-releases, each by precedence."""

_LATEST = f"""
    {_COLUMNS}
    WHERE {OF_BUNDLE} AND v.status = 'active'
    ORDER BY {NEWEST_FIRST}
    LIMIT 1
"""

_LIST = f"""
    {_COLUMNS}
    WHERE {OF_BUNDLE} AND ($2::text IS NULL OR v.sort_key < $2 COLLATE "C")
    ORDER BY v.sort_key DESC
    LIMIT $3
"""

_INSERT = """
    INSERT INTO registry.versions (bundle_id, version, sort_key, prerelease, immutable, revision)
    VALUES ($1, $2, $3, $4, $5, 1)
    RETURNING id
"""

_ADVANCE = """
    UPDATE registry.versions
    SET revision = revision + 1, immutable = immutable OR $2
    WHERE id = $1
    RETURNING revision
"""

# The clock is read here, under the lock, so that later revisions have later times.
_INSERT_REVISION = """
    INSERT INTO registry.revisions
        (version_id, revision, digest, published_at, published_by, reason, previous_digest, build_id, rolled_back_to)
    VALUES ($1, $2, $3, clock_timestamp(), $4, $5, $6, $7, $8)
"""

_SET_STATUS = """
    UPDATE registry.versions
    SET status = $2, status_reason = $3, status_by = $4, status_at = CASE WHEN $4::text IS NOT NULL THEN now() END
    WHERE id = $1
"""

_SET_IMMUTABLE = "UPDATE registry.versions SET immutable = $2 WHERE id = $1"

_REVISIONS = """
    SELECT r.revision, r.digest, a.content_digest, a.size, a.unpacked_size, a.file_count, a.object_key, a.platforms,
           r.published_at, r.published_by, r.reason, r.previous_digest, r.build_id, r.rolled_back_to,
           a.collected_at, a.damaged_at,
           CASE WHEN r.rolled_back_to IS NOT NULL THEN 'rolled_back'
                WHEN r.revision > 1 THEN 'replaced'
                ELSE 'published' END AS origin
    FROM registry.revisions r
    JOIN registry.artifacts a ON a.digest = r.digest
"""

_LIST_REVISIONS = f"""
    {_REVISIONS}
    WHERE r.version_id = $1 AND ($2::bigint IS NULL OR r.revision < $2)
    ORDER BY r.revision DESC
    LIMIT $3
"""

_FIND_REVISION = f"{_REVISIONS} WHERE r.version_id = $1 AND r.revision = $2"

_FIND_NEWEST_REVISION = f"""
    {_REVISIONS}
    WHERE r.version_id = $1 AND r.digest = $2
    ORDER BY r.revision DESC
    LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Version:
    """A version and its current revision.

    The last four are None until it is replaced, reason, actor and time of its status while it is active.
    """

    id: int
    slug: str
    version: str
    sort_key: str
    revision: int
    status: str
    status_reason: str | None
    status_by: str | None
    status_at: datetime | None
    immutable: bool
    bundle_immutable: bool
    digest: str
    content_digest: str
    size: int
    unpacked_size: int
    file_count: int
    compression: str
    object_key: str
    platforms: list[str]
    manifest: dict[str, Any]
    published_at: datetime
    published_by: str
    replaced_at: datetime | None
    replaced_by: str | None
    reason: str | None
    previous_digest: str | None

    @property
    def deprecation_reason(self) -> str | None:
        """The reason of its status under its older name."""
        return self.status_reason if self.status == VersionStatus.DEPRECATED else None


@dataclass(frozen=True, slots=True)
class NewRevision:
    """A publication that is to be recorded, or a way back to an earlier one; `build_id` made the artifact."""

    digest: str
    published_by: str
    reason: str | None
    previous_digest: str | None
    build_id: str | None
    rolled_back_to: int | None


@dataclass(frozen=True, slots=True)
class Revision(NewRevision):
    """A revision as it is recorded. `origin` says how it came about: published, replaced or rolled_back."""

    revision: int
    content_digest: str
    size: int
    unpacked_size: int
    file_count: int
    object_key: str
    platforms: list[str]
    published_at: datetime
    origin: str
    collected_at: datetime | None
    damaged_at: datetime | None


async def lock(connection: Connection, slug: str, version: str) -> None:
    """Be the only one who changes this version, existing or not, until the transaction ends."""
    await connection.execute(_LOCK, slug, version)


async def find(connection: Connection, slug: str, version: str) -> Version | None:
    """The version as it is now."""
    row = await connection.fetchrow(_FIND, slug, version)
    return Version(**dict(row)) if row else None


async def find_latest(connection: Connection, slug: str) -> Version | None:
    """The highest version that is offered; a pre-release only where there is no release."""
    row = await connection.fetchrow(_LATEST, slug)
    return Version(**dict(row)) if row else None


async def list_page(connection: Connection, slug: str, *, below: str | None, limit: int) -> list[Version]:
    """Versions of a bundle, highest first, those whose sort key is below `below`."""
    rows = await connection.fetch(_LIST, slug, below, limit)
    return [Version(**dict(row)) for row in rows]


async def insert(
    connection: Connection, bundle_id: int, version: str, revision: NewRevision, *, immutable: bool
) -> None:
    """Record a new version with its first revision."""
    identifier: int = await connection.fetchval(
        _INSERT, bundle_id, version, version_sort_key(version), is_prerelease(version), immutable
    )
    await _insert_revision(connection, identifier, 1, revision)


async def advance(connection: Connection, version_id: int, revision: NewRevision, *, immutable: bool) -> None:
    """Add a revision to a version and make it the current one."""
    number: int = await connection.fetchval(_ADVANCE, version_id, immutable)
    await _insert_revision(connection, version_id, number, revision)


async def _insert_revision(connection: Connection, version_id: int, number: int, revision: NewRevision) -> None:
    await connection.execute(
        _INSERT_REVISION,
        version_id,
        number,
        revision.digest,
        revision.published_by,
        revision.reason,
        revision.previous_digest,
        revision.build_id,
        revision.rolled_back_to,
    )


async def set_status(
    connection: Connection, version_id: int, status: str, *, reason: str | None, actor: str | None
) -> None:
    """Give a version a status, for a reason and by an actor; both are None for `active`."""
    await connection.execute(_SET_STATUS, version_id, status, reason, actor)


async def set_immutable(connection: Connection, version_id: int, *, immutable: bool) -> None:
    """Let nobody but an administrator replace a version, or whoever may replace versions."""
    await connection.execute(_SET_IMMUTABLE, version_id, immutable)


async def list_revisions(connection: Connection, version_id: int, *, below: int | None, limit: int) -> list[Revision]:
    """Revisions of a version, newest first, those below `below`."""
    rows = await connection.fetch(_LIST_REVISIONS, version_id, below, limit)
    return [Revision(**dict(row)) for row in rows]


async def find_revision(connection: Connection, version_id: int, revision: int) -> Revision | None:
    """One revision of a version."""
    row = await connection.fetchrow(_FIND_REVISION, version_id, revision)
    return Revision(**dict(row)) if row else None


async def find_newest_revision(connection: Connection, version_id: int, digest: str) -> Revision | None:
    """The newest revision of a version that is or was this artifact."""
    row = await connection.fetchrow(_FIND_NEWEST_REVISION, version_id, digest)
    return Revision(**dict(row)) if row else None
