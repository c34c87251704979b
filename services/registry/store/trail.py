"""The audit trail: events, their places in the Merkle tree, and what was signed."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from libs.common.audit import RecordedEvent
from libs.common.database import Connection
from services.registry.merkle import Subtree

_SEALER_LOCK = 0x73746F7761676501  # any number that nothing else in the database locks
_COLUMNS = (
    "e.id, e.at, e.actor, e.action, e.subject, e.digest, e.previous_digest, e.reason, e.request_id, e.client, e.detail"
)

_GET = f"""
    SELECT {_COLUMNS}, l.position
    FROM audit.events e LEFT JOIN audit.leaves l ON l.event_id = e.id
    WHERE e.id = $1
"""  # noqa: S608

_LIST = f"""
    SELECT {_COLUMNS}
    FROM audit.events e
    WHERE {{conditions}}
    ORDER BY {{moment}} DESC, e.id DESC
    LIMIT {{limit}}
"""  # noqa: S608

_MOMENT = "{}"
_MOMENT_ALONE = "({} AT TIME ZONE 'UTC')"
"""How a time is written where only times are asked for: as the index is that has nothing but times."""

_SEALED = f"""
    SELECT l.position, l.hash, {_COLUMNS}
    FROM audit.leaves l JOIN audit.events e ON e.id = l.event_id
    WHERE l.position > $1 AND {{conditions}}
    ORDER BY l.position
    LIMIT {{limit}}
"""  # noqa: S608

_UNSEALED = f"""
    SELECT {_COLUMNS}
    FROM audit.unsealed u JOIN audit.events e ON e.id = u.event_id
    WHERE {{conditions}}
    ORDER BY e.id
"""  # noqa: S608

_LEAVES = f"""
    SELECT l.position, l.event_id, l.hash, {_COLUMNS}
    FROM audit.leaves l LEFT JOIN audit.events e ON e.id = l.event_id
    ORDER BY l.position
"""  # noqa: S608

_STRAY = """
    SELECT id
    FROM audit.events e
    WHERE NOT EXISTS (SELECT FROM audit.leaves l WHERE l.event_id = e.id)
      AND NOT EXISTS (SELECT FROM audit.unsealed u WHERE u.event_id = e.id)
    ORDER BY id
    LIMIT 1
"""

_TRY_LOCK = "SELECT pg_try_advisory_xact_lock($1)"

_AWAITING = f"""
    SELECT {_COLUMNS}
    FROM audit.unsealed u JOIN audit.events e ON e.id = u.event_id
    ORDER BY u.event_id
    LIMIT $1
"""  # noqa: S608

_TREE_SIZE = "SELECT coalesce(max(position) + 1, 0) FROM audit.leaves"

_INSERT_LEAVES = """
    INSERT INTO audit.leaves (position, event_id, hash)
    SELECT $1 + ordinality - 1, event_id, hash
    FROM unnest($2::bigint[], $3::bytea[]) WITH ORDINALITY AS sealed(event_id, hash, ordinality)
"""

_INSERT_SUBTREES = """
    INSERT INTO audit.subtrees (level, position, hash)
    SELECT level, position, hash FROM unnest($1::smallint[], $2::bigint[], $3::bytea[]) AS whole(level, position, hash)
"""

_SEALED_NOW = "DELETE FROM audit.unsealed WHERE event_id = ANY($1::bigint[])"

_LEAF_HASHES = "SELECT position, hash FROM audit.leaves WHERE position >= $1 AND position < $2"

_SUBTREE_HASHES = "SELECT position, hash FROM audit.subtrees WHERE position >= $1 AND position < $2 AND level = $3"

_CHECKPOINT_COLUMNS = "tree_size, root, note, at"

_NEWEST_CHECKPOINT = f"SELECT {_CHECKPOINT_COLUMNS} FROM audit.checkpoints ORDER BY tree_size DESC LIMIT 1"  # noqa: S608

_CHECKPOINTS = f"SELECT {_CHECKPOINT_COLUMNS} FROM audit.checkpoints ORDER BY tree_size"  # noqa: S608

_INSERT_CHECKPOINT = """
    INSERT INTO audit.checkpoints (tree_size, root, note)
    VALUES ($1, $2, $3)
    ON CONFLICT (tree_size) DO NOTHING
"""

_COUNT_UNSEALED = "SELECT count(*) FROM audit.unsealed"

_NOW = "SELECT clock_timestamp()"


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events. `subject` matches exactly, or everything about one bundle (`hello` finds `hello@1.2.0`)."""

    actor: str | None = None
    action: str | None = None
    subject: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class ExportedEvent:
    """An event with its place and hash in the tree; None where it has not been sealed yet."""

    position: int | None
    leaf_hash: bytes | None
    event: RecordedEvent


@dataclass(frozen=True, slots=True)
class SealedEvent:
    """A leaf of the tree, and the event that it is of; None where that is gone."""

    position: int
    event_id: int
    leaf_hash: bytes
    event: RecordedEvent | None


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A root that was signed."""

    tree_size: int
    root: bytes
    note: str
    at: datetime


async def find_event(connection: Connection, event_id: int) -> tuple[RecordedEvent, int | None] | None:
    """An event and its position in the tree, which is None until it is sealed."""
    row = await connection.fetchrow(_GET, event_id)
    return (_event(row), row["position"]) if row else None


async def list_events(
    connection: Connection, wanted: EventFilter, *, before: tuple[datetime, int] | None, limit: int
) -> list[RecordedEvent]:
    """Events, newest first: those before the time and id `before`.

    It is planned for what is asked each time. A plan for any actor and any subject, as PostgreSQL makes one after a few
    executions, reads all events of either: few on average, most of the table for whoever publishes all day.
    """
    statement, values = list_statement(wanted, before=before, limit=limit)
    prepared = await connection.prepare(statement)  # anew: of its own, and not the connection's cache
    return [_event(row) for row in await prepared.fetch(*values)]


def list_statement(wanted: EventFilter, *, before: tuple[datetime, int] | None, limit: int) -> tuple[str, list[object]]:
    """What `list_events` asks, and with which values."""
    moment = _MOMENT_ALONE if wanted.actor is wanted.action is wanted.subject is None else _MOMENT
    conditions, values = _conditions(wanted, moment=moment)
    at = moment.format("e.at")
    if before is not None:
        values += before
        conditions.append(f"({at}, e.id) < ({moment.format(f'${len(values) - 1}::timestamptz')}, ${len(values)})")
    statement = _LIST.format(conditions=" AND ".join(conditions) or "true", moment=at, limit=f"${len(values) + 1}")
    return statement, [*values, limit]


async def export(connection: Connection, wanted: EventFilter, *, after: int, limit: int) -> list[ExportedEvent]:
    """Events in the order of the tree, those at positions above `after`."""
    conditions, values = _conditions(wanted, first=2)
    statement = _SEALED.format(conditions=" AND ".join(conditions) or "true", limit=f"${len(values) + 2}")
    rows = await connection.fetch(statement, after, *values, limit)
    return [ExportedEvent(row["position"], row["hash"], _event(row)) for row in rows]


async def export_unsealed(connection: Connection, wanted: EventFilter) -> AsyncIterator[ExportedEvent]:
    """Events that have no place in the tree yet. Inside a transaction."""
    conditions, values = _conditions(wanted)
    statement = _UNSEALED.format(conditions=" AND ".join(conditions) or "true")
    async for row in connection.cursor(statement, *values, prefetch=500):
        yield ExportedEvent(None, None, _event(row))


async def all_leaves(connection: Connection) -> AsyncIterator[SealedEvent]:
    """Every leaf with its event, in order. Inside a transaction."""
    async for row in connection.cursor(_LEAVES, prefetch=1000):
        event = None if row["id"] is None else _event(row)
        yield SealedEvent(row["position"], row["event_id"], row["hash"], event)


async def first_stray(connection: Connection) -> int | None:
    """The lowest id of an event that neither has a place in the tree nor waits for one."""
    identifier: int | None = await connection.fetchval(_STRAY)
    return identifier


async def count_unsealed(connection: Connection) -> int:
    """How many events wait for a place in the tree."""
    count: int = await connection.fetchval(_COUNT_UNSEALED)
    return count


async def try_to_be_sealer(connection: Connection) -> bool:
    """Be the only one that seals until the transaction ends; False where another one is."""
    return bool(await connection.fetchval(_TRY_LOCK, _SEALER_LOCK))


async def awaiting_seal(connection: Connection, limit: int) -> list[RecordedEvent]:
    """Committed events without a place in the tree, by id."""
    return [_event(row) for row in await connection.fetch(_AWAITING, limit)]


async def tree_size(connection: Connection) -> int:
    """How many leaves there are."""
    size: int = await connection.fetchval(_TREE_SIZE)
    return size


async def insert_leaves(connection: Connection, first: int, leaves: Sequence[tuple[int, bytes]]) -> None:
    """Give events, by id and hash, their places from `first` on; they wait no longer."""
    identifiers = [event_id for event_id, _ in leaves]
    await connection.execute(_INSERT_LEAVES, first, identifiers, [hashed for _, hashed in leaves])
    await connection.execute(_SEALED_NOW, identifiers)


async def insert_subtrees(connection: Connection, subtrees: Iterable[tuple[Subtree, bytes]]) -> None:
    """Keep hashes of whole subtrees."""
    rows = list(subtrees)
    if rows:
        levels, positions = [tree.level for tree, _ in rows], [tree.position for tree, _ in rows]
        await connection.execute(_INSERT_SUBTREES, levels, positions, [hashed for _, hashed in rows])


async def hashes_of(connection: Connection, level: int, first: int, end: int) -> Mapping[int, bytes]:
    """Hashes of kept subtrees of a level, or of leaves, by position: those from `first` up to, and without, `end`."""
    if level == 0:
        rows = await connection.fetch(_LEAF_HASHES, first, end)
    else:
        rows = await connection.fetch(_SUBTREE_HASHES, first, end, level)
    return {row["position"]: row["hash"] for row in rows}


async def newest_checkpoint(connection: Connection) -> SignedCheckpoint | None:
    """The checkpoint of the largest tree."""
    row = await connection.fetchrow(_NEWEST_CHECKPOINT)
    return SignedCheckpoint(**dict(row)) if row else None


async def all_checkpoints(connection: Connection) -> AsyncIterator[SignedCheckpoint]:
    """Every checkpoint, by size. Inside a transaction."""
    async for row in connection.cursor(_CHECKPOINTS, prefetch=500):
        yield SignedCheckpoint(**dict(row))


async def insert_checkpoint(connection: Connection, size: int, root: bytes, note: str) -> None:
    """Keep a checkpoint; one of the same size stays as it is."""
    await connection.execute(_INSERT_CHECKPOINT, size, root, note)


async def now(connection: Connection) -> datetime:
    """The time as PostgreSQL has it."""
    moment: datetime = await connection.fetchval(_NOW)
    return moment


def _conditions(wanted: EventFilter, *, first: int = 1, moment: str = _MOMENT) -> tuple[list[str], list[Any]]:
    """What a filter asks, and the values of its parameters, the first of which is `$first`.

    Only what is asked for is in the statement: of a statement for all cases PostgreSQL would make one plan for all.
    """
    asked: list[tuple[str, Any]] = [("e.actor = {}", wanted.actor), ("e.action = {}", wanted.action)]
    if wanted.subject is not None and "@" in wanted.subject:
        asked.append(("e.subject = {}", wanted.subject))
    else:
        asked.append(("split_part(e.subject, '@', 1) = {}", wanted.subject))
    at, given_at = moment.format("e.at"), moment.format("{}::timestamptz")
    asked += [(f"{at} >= {given_at}", wanted.since), (f"{at} < {given_at}", wanted.until)]
    given = [(text, value) for text, value in asked if value is not None]
    texts = [text.format(f"${number}") for number, (text, _) in enumerate(given, first)]
    return texts, [value for _, value in given]


def _event(row: asyncpg.Record) -> RecordedEvent:
    return RecordedEvent(**{name: row[name] for name in RecordedEvent.__slots__})
