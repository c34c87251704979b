"""Artifacts and their members."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from libs.common.database import Connection

_LOCK = "SELECT pg_advisory_lock(hashtextextended('artifact ' || $1::text, 0))"
_UNLOCK = "SELECT pg_advisory_unlock(hashtextextended('artifact ' || $1::text, 0))"

_GET = """
    SELECT digest, content_digest, size, unpacked_size, file_count, compression, object_key, manifest, platforms,
           native, created_at
    FROM registry.artifacts
    WHERE digest = $1
"""

_EXISTS = "SELECT EXISTS (SELECT FROM registry.artifacts WHERE digest = $1)"

_INSERT = """
    INSERT INTO registry.artifacts
        (digest, content_digest, size, unpacked_size, file_count, compression, object_key, manifest, platforms, native)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
    ON CONFLICT (digest) DO NOTHING
    RETURNING true
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
    """An artifact as it is recorded."""

    created_at: datetime


@dataclass(frozen=True, slots=True)
class File:
    """A member of an artifact. `digest` is the raw SHA-256 of a file's bytes."""

    path: str
    type: str
    size: int
    mode: int
    digest: bytes | None
    link_target: str | None


@asynccontextmanager
async def locked(connection: Connection, digest: str) -> AsyncIterator[None]:
    """Be the only one who decides whether the object of this artifact is there, while the context is open.

    The lock belongs to the session: the bucket may be asked under it, since no transaction is open.
    """
    await connection.execute(_LOCK, digest)
    try:
        yield
    finally:
        if not connection.is_closed():  # with the session the lock is gone
            await connection.execute(_UNLOCK, digest)


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


async def list_files(connection: Connection, digest: str, *, after: str | None, limit: int | None) -> list[File]:
    """Members of an artifact by path, those after `after`; all of them where `limit` is None."""
    rows = await connection.fetch(_LIST_FILES, digest, after, limit)
    return [_file(row) for row in rows]


def _file(row: asyncpg.Record) -> File:
    return File(row["path"], row["type"], row["size"], row["mode"], row["file_digest"], row["link_target"])
