"""Artifacts and their members."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from libs.common.database import Connection, session_lock
from services.registry.store.bundles import like

COLUMNS = """
    a.digest, a.content_digest, a.size, a.unpacked_size, a.file_count, a.compression, a.object_key, a.manifest,
    a.platforms, a.native, a.created_at, a.gc_marked_at, a.gc_claimed_at, a.collected_at, a.collection_policy,
    a.damaged_at, a.damage, coalesce(a.last_used_at > now() - interval '1 hour', false) AS used_lately
"""
"""What an Artifact is made of, from `registry.artifacts a`."""

_GET = f"SELECT {COLUMNS} FROM registry.artifacts a WHERE a.digest = $1"  # noqa: S608  # a constant of ours

_EXISTS = "SELECT EXISTS (SELECT FROM registry.artifacts WHERE digest = $1)"

_IS_OF_ANY = """
    SELECT EXISTS (
        SELECT
        FROM registry.revisions r
        JOIN registry.versions v ON v.id = r.version_id
        JOIN registry.bundles b ON b.id = v.bundle_id
        WHERE r.digest = $1 AND b.slug LIKE ANY ($2::text[])
    )
"""

_INSERT = """
    INSERT INTO registry.artifacts
        (digest, content_digest, size, unpacked_size, file_count, compression, object_key, manifest, platforms, native)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
    ON CONFLICT (digest) DO NOTHING
    RETURNING true
"""

# Its object is in the bucket now, whatever it was before.
_RESTORE = """
    UPDATE registry.artifacts
    SET stored_at = now(), gc_marked_at = NULL, gc_claimed_at = NULL, collected_at = NULL, collection_policy = NULL,
        damaged_at = NULL, damage = NULL
    WHERE digest = $1
"""

_QUARANTINE = "UPDATE registry.artifacts SET damaged_at = coalesce(damaged_at, now()), damage = $2 WHERE digest = $1"

# Locked in order, so that two who note the same artifacts don't wait for each other.
_NOTE_USES = """
    WITH noted AS (
        SELECT digest
        FROM registry.artifacts
        WHERE digest = ANY($1::text[]) AND gc_claimed_at IS NULL AND collected_at IS NULL
          AND (gc_marked_at IS NOT NULL OR last_used_at IS NULL OR last_used_at <= now() - interval '1 hour')
        ORDER BY digest
        FOR NO KEY UPDATE
    )
    UPDATE registry.artifacts SET last_used_at = now(), gc_marked_at = NULL FROM noted
    WHERE artifacts.digest = noted.digest
    RETURNING artifacts.digest
"""

_UNAVAILABLE = """
    SELECT asked.digest
    FROM unnest($1::text[]) AS asked (digest)
    LEFT JOIN registry.artifacts ON artifacts.digest = asked.digest
    WHERE artifacts.digest IS NULL OR gc_claimed_at IS NOT NULL OR collected_at IS NOT NULL OR damaged_at IS NOT NULL
    ORDER BY asked.digest
"""

_FIND_EQUAL = """
    SELECT other.digest
    FROM registry.artifacts AS other
    WHERE other.content_digest = $1 AND other.digest <> $2
      AND other.gc_claimed_at IS NULL AND other.collected_at IS NULL AND other.damaged_at IS NULL
    ORDER BY other.created_at
    LIMIT 1
"""

_FILE_COLUMNS = ("digest", "path", "type", "size", "mode", "file_digest", "link_target")

_LIST_FILES = """
    SELECT path, type, size, mode, file_digest, link_target
    FROM registry.artifact_files
    WHERE digest = $1 AND ($2::text IS NULL OR path > $2 COLLATE "C")
    ORDER BY path
    LIMIT $3
"""


@dataclass(frozen=True, slots=True)
class NewArtifact:
    """An artifact that is to be recorded; its object is in the bucket."""

    digest: str
    content_digest: str
    size: int
    unpacked_size: int
    file_count: int
    compression: str
    object_key: str
    manifest: dict[str, Any]
    platforms: list[str]
    native: list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Artifact(NewArtifact):
    """An artifact as it is recorded, and what became of its object (see the migration `artifact_care`)."""

    created_at: datetime
    gc_marked_at: datetime | None
    gc_claimed_at: datetime | None
    collected_at: datetime | None
    collection_policy: str | None
    damaged_at: datetime | None
    damage: str | None
    used_lately: bool

    @property
    def available(self) -> bool:
        """Whether it can be had, as far as is known: not collected, not about to be, not damaged."""
        return self.collected_at is None and self.gc_claimed_at is None and self.damaged_at is None


@dataclass(frozen=True, slots=True)
class File:
    """A member of an artifact. `digest` is the raw SHA-256 of a file's bytes."""

    path: str
    type: str
    size: int
    mode: int
    digest: bytes | None
    link_target: str | None


async def is_of_any(connection: Connection, digest: str, patterns: list[str]) -> bool:
    """Whether it is or was what a bundle consists of whose slug matches one of the patterns."""
    found: bool = await connection.fetchval(_IS_OF_ANY, digest, like(patterns))
    return found


@asynccontextmanager
async def locked(connection: Connection, digest: str) -> AsyncIterator[None]:
    """Be the only one who decides whether the object of this artifact is there, while the context is open.

    The lock belongs to the session: the bucket may be asked under it, since no transaction is open.
    """
    async with session_lock(connection, f"artifact {digest}"):
        yield


async def get(connection: Connection, digest: str) -> Artifact | None:
    """The artifact with this digest."""
    row = await connection.fetchrow(_GET, digest)
    return Artifact(**dict(row)) if row else None


async def exists(connection: Connection, digest: str) -> bool:
    """Whether a row refers to the object of this digest."""
    found: bool = await connection.fetchval(_EXISTS, digest)
    return found


async def insert(connection: Connection, artifact: NewArtifact, files: Iterable[File]) -> None:
    """Record an artifact and its members, unless it is recorded already."""
    inserted = await connection.fetchval(
        _INSERT,
        artifact.digest,
        artifact.content_digest,
        artifact.size,
        artifact.unpacked_size,
        artifact.file_count,
        artifact.compression,
        artifact.object_key,
        artifact.manifest,
        artifact.platforms,
        artifact.native,
    )
    if inserted:
        await connection.copy_records_to_table(
            "artifact_files",
            schema_name="registry",
            columns=_FILE_COLUMNS,
            records=(
                (artifact.digest, file.path, file.type, file.size, file.mode, file.digest, file.link_target)
                for file in files
            ),
        )


async def restore(connection: Connection, digest: str) -> None:
    """Record that the object of an artifact is in the bucket, whole. Under the lock on the artifact."""
    await connection.execute(_RESTORE, digest)


async def quarantine(connection: Connection, digest: str, damage: str) -> None:
    """Record what is wrong with the object of an artifact. Under the lock on the artifact."""
    await connection.execute(_QUARANTINE, digest, damage)


async def note_uses(connection: Connection, digests: Sequence[str]) -> list[str]:
    """Record that runs use these artifacts, at most once an hour each; those for which it was recorded now.

    What was to be collected is not any more. What is being collected already is left out.
    """
    return [row["digest"] for row in await connection.fetch(_NOTE_USES, list(digests))]


async def unavailable(connection: Connection, digests: Sequence[str]) -> list[str]:
    """Those of these artifacts that are unknown, collected or damaged."""
    return [row["digest"] for row in await connection.fetch(_UNAVAILABLE, list(digests))]


async def find_equal(connection: Connection, content_digest: str, *, other_than: str) -> str | None:
    """The oldest other artifact with this content that is neither collected nor known to be damaged."""
    found: str | None = await connection.fetchval(_FIND_EQUAL, content_digest, other_than)
    return found


async def list_files(connection: Connection, digest: str, *, after: str | None, limit: int | None) -> list[File]:
    """Members of an artifact by path, those after `after`; all of them where `limit` is None."""
    rows = await connection.fetch(_LIST_FILES, digest, after, limit)
    return [_file(row) for row in rows]


def _file(row: asyncpg.Record) -> File:
    return File(row["path"], row["type"], row["size"], row["mode"], row["file_digest"], row["link_target"])
