"""What differs between the members of two artifacts: compared by the database, so that only what differs is sent.

What counts for the content digest counts here: a hard link is the file that it names, and a directory is something only
where nothing is in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from libs.common.database import Connection
from services.registry.store.artifacts import File

# `0` is the character after `/`: between the two is all that is below a directory.
_RECORDED = """
    (SELECT path, type, size, mode, file_digest, link_target
     FROM registry.artifact_files member
     WHERE digest = {digest}
       AND (type <> 'directory' OR NOT EXISTS (
            SELECT FROM registry.artifact_files inside
            WHERE inside.digest = member.digest
              AND inside.path > member.path || '/' AND inside.path < member.path || '0')))
"""

_OFFERED = """
    (SELECT path COLLATE "C" AS path, type, size, mode, file_digest, link_target
     FROM unnest($2::text[], $3::text[], $4::bigint[], $5::integer[], $6::bytea[], $7::text[])
         AS offered (path, type, size, mode, file_digest, link_target))
"""

_CONTENT = """
    SELECT path, CASE type WHEN 'hardlink' THEN 'file' ELSE type END AS type, size, mode, file_digest,
           CASE type WHEN 'symlink' THEN link_target END AS link_target,
           CASE type WHEN 'hardlink' THEN link_target ELSE path END AS source
    FROM {members} AS members
"""

_CHANGES = """
    SELECT path, old.type AS old_type, old.size AS old_size, old.mode AS old_mode, old.file_digest AS old_file_digest,
           old.link_target AS old_link_target, old.source AS old_source,
           new.type AS new_type, new.size AS new_size, new.mode AS new_mode, new.file_digest AS new_file_digest,
           new.link_target AS new_link_target, new.source AS new_source
    FROM ({old}) AS old FULL JOIN ({new}) AS new USING (path)
    WHERE (old.type, old.size, old.mode, old.file_digest, old.link_target)
          IS DISTINCT FROM (new.type, new.size, new.mode, new.file_digest, new.link_target)
"""

_SUMMARY = """
    SELECT count(*) FILTER (WHERE old_type IS NULL) AS added,
           count(*) FILTER (WHERE new_type IS NULL) AS removed,
           count(*) FILTER (WHERE old_type IS NOT NULL AND new_type IS NOT NULL) AS changed,
           coalesce(sum(new_size) FILTER (WHERE old_type IS NULL), 0)::bigint AS added_bytes,
           coalesce(sum(old_size) FILTER (WHERE new_type IS NULL), 0)::bigint AS removed_bytes,
           coalesce(sum(new_size - old_size), 0)::bigint AS changed_bytes,
           coalesce((array_agg(path ORDER BY path) FILTER (WHERE old_type IS NULL))[:{shown}], '{{}}') AS added_paths,
           coalesce((array_agg(path ORDER BY path) FILTER (WHERE new_type IS NULL))[:{shown}], '{{}}') AS removed_paths,
           coalesce((array_agg(path ORDER BY path) FILTER (WHERE old_type IS NOT NULL AND new_type IS NOT NULL))
                    [:{shown}], '{{}}') AS changed_paths
    FROM ({changes}) AS changes
"""

_OLD = _CONTENT.format(members=_RECORDED.format(digest="$1"))
_BETWEEN_RECORDED = _CHANGES.format(old=_OLD, new=_CONTENT.format(members=_RECORDED.format(digest="$2")))
_WITH_OFFERED = _CHANGES.format(old=_OLD, new=_CONTENT.format(members=_OFFERED))

_SUMMARISE = _SUMMARY.format(changes=_BETWEEN_RECORDED, shown="$3::integer")
_SUMMARISE_OFFERED = _SUMMARY.format(changes=_WITH_OFFERED, shown="$8::integer")

_LIST = f"""
    SELECT * FROM ({_BETWEEN_RECORDED}) AS changes
    WHERE $3::text IS NULL OR path > $3 COLLATE "C"
    ORDER BY path
    LIMIT $4
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Summary:
    """How many members differ and by how many bytes, with the first paths of each kind in the order of their bytes.

    `changed_bytes` is by how much the changed members grew; negative where they shrank.
    """

    added: int
    removed: int
    changed: int
    added_bytes: int
    removed_bytes: int
    changed_bytes: int
    added_paths: list[str]
    removed_paths: list[str]
    changed_paths: list[str]


@dataclass(frozen=True, slots=True)
class Member:
    """A member on one side. The bytes of a file are those of the member `source`, another one only for hard links."""

    type: str
    size: int
    mode: int
    digest: bytes | None
    link_target: str | None
    source: str


@dataclass(frozen=True, slots=True)
class Change:
    """A member that is only on one side, or another on each."""

    path: str
    before: Member | None
    after: Member | None


async def summarise(connection: Connection, before: str, after: str, *, shown: int) -> Summary:
    """What differs between two artifacts that are recorded, with at most `shown` paths of each kind."""
    return _summary(await connection.fetchrow(_SUMMARISE, before, after, shown))


async def summarise_offered(connection: Connection, before: str, offered: Sequence[File], *, shown: int) -> Summary:
    """What differs between an artifact and the content of one that is not recorded."""
    columns = (
        [file.path for file in offered],
        [file.type for file in offered],
        [file.size for file in offered],
        [file.mode for file in offered],
        [file.digest for file in offered],
        [file.link_target for file in offered],
    )
    return _summary(await connection.fetchrow(_SUMMARISE_OFFERED, before, *columns, shown))


async def list_changes(
    connection: Connection, before: str, after: str, *, after_path: str | None, limit: int
) -> list[Change]:
    """Members that differ between two artifacts, by path, those after `after_path`."""
    rows = await connection.fetch(_LIST, before, after, after_path, limit)
    return [Change(row["path"], _member(row, "old"), _member(row, "new")) for row in rows]


def _summary(row: asyncpg.Record | None) -> Summary:
    if row is None:
        raise LookupError("an aggregate without a row")
    return Summary(**dict(row))


def _member(row: asyncpg.Record, side: str) -> Member | None:
    if row[f"{side}_type"] is None:
        return None
    return Member(
        row[f"{side}_type"],
        row[f"{side}_size"],
        row[f"{side}_mode"],
        row[f"{side}_file_digest"],
        row[f"{side}_link_target"],
        row[f"{side}_source"],
    )
