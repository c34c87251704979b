"""Tokens: their hashes, never they themselves."""

from dataclasses import dataclass
from datetime import datetime

from libs.common.database import Connection

_COLUMNS = "id, subject, scopes, created_at, created_by, expires_at, revoked_at, last_used_at"

_FIND_LIVE = """
    SELECT id, subject, scopes, expires_at
    FROM registry.tokens
    WHERE hash = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
"""

_FIND = f"SELECT {_COLUMNS} FROM registry.tokens WHERE hash = $1"  # noqa: S608

_INSERT = f"""
    INSERT INTO registry.tokens (id, hash, subject, scopes, created_by, expires_at)
    VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT (hash) DO NOTHING
    RETURNING {_COLUMNS}
"""  # noqa: S608

_LOCK = f"SELECT {_COLUMNS} FROM registry.tokens WHERE id = $1 FOR UPDATE"  # noqa: S608

_REVOKE = f"""
    UPDATE registry.tokens
    SET revoked_at = clock_timestamp()
    WHERE id = $1
    RETURNING {_COLUMNS}
"""  # noqa: S608

_LIST = f"""
    SELECT {_COLUMNS}
    FROM registry.tokens
    WHERE ($1::text IS NULL OR id > $1)
      AND ($3::text IS NULL OR subject = $3)
      AND ($4::boolean IS NULL OR $4 = (revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())))
      AND ($5::timestamptz IS NULL OR coalesce(last_used_at, created_at) < $5)
    ORDER BY id
    LIMIT $2
"""  # noqa: S608

_NOTE_REFUSAL = """
    UPDATE registry.tokens
    SET refused_at = now()
    WHERE hash = $1
      AND (revoked_at IS NOT NULL OR expires_at <= now())
      AND (refused_at IS NULL OR refused_at < now() - make_interval(secs => $2))
    RETURNING id, subject, revoked_at IS NOT NULL AS revoked
"""

# What other replicas noted in the meantime may be later.
_NOTE_USE = """
    UPDATE registry.tokens t
    SET last_used_at = greatest(t.last_used_at, now() - make_interval(secs => used.age))
    FROM unnest($1::text[], $2::float8[]) AS used (id, age)
    WHERE t.id = used.id
"""


@dataclass(frozen=True, slots=True)
class TokenFilter:
    """Which tokens. `active` are those that work; `unused_since` finds those that nobody has used since, or ever."""

    subject: str | None = None
    active: bool | None = None
    unused_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class LiveToken:
    """A token that works: not revoked, not expired."""

    id: str
    subject: str
    scopes: list[str]
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class RefusedToken:
    """A token that works no more: revoked, or else expired."""

    id: str
    subject: str
    revoked: bool


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that is to be recorded."""

    id: str
    hash: bytes
    subject: str
    scopes: list[str]
    created_by: str
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is recorded."""

    id: str
    subject: str
    scopes: list[str]
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


async def find_live(connection: Connection, hashed: bytes) -> LiveToken | None:
    """The token with this hash, if it works just now."""
    row = await connection.fetchrow(_FIND_LIVE, hashed)
    return LiveToken(**dict(row)) if row else None


async def note_refusal(connection: Connection, hashed: bytes, *, interval_seconds: float) -> RefusedToken | None:
    """The token with this hash, if it is revoked or expired and was not noted as refused within the interval."""
    row = await connection.fetchrow(_NOTE_REFUSAL, hashed, interval_seconds)
    return RefusedToken(**dict(row)) if row else None


async def find(connection: Connection, hashed: bytes) -> Token | None:
    """The token with this hash, whether it works or not."""
    row = await connection.fetchrow(_FIND, hashed)
    return Token(**dict(row)) if row else None


async def insert(connection: Connection, token: NewToken) -> Token | None:
    """Record a token; None where one with the same hash is there."""
    row = await connection.fetchrow(
        _INSERT, token.id, token.hash, token.subject, token.scopes, token.created_by, token.expires_at
    )
    return Token(**dict(row)) if row else None


async def lock(connection: Connection, token_id: str) -> Token | None:
    """The token with this id, which nobody else changes until the transaction ends."""
    row = await connection.fetchrow(_LOCK, token_id)
    return Token(**dict(row)) if row else None


async def revoke(connection: Connection, token_id: str) -> Token:
    """Make a token useless from now on."""
    row = await connection.fetchrow(_REVOKE, token_id)
    if row is None:
        raise LookupError(token_id)
    return Token(**dict(row))


async def note_use(connection: Connection, ages: dict[str, float]) -> None:
    """Record that tokens were used, each by its id so many seconds ago."""
    await connection.execute(_NOTE_USE, list(ages), list(ages.values()))


async def list_page(connection: Connection, wanted: TokenFilter, *, after: str | None, limit: int) -> list[Token]:
    """Tokens by id, which is by time, those after `after`."""
    rows = await connection.fetch(_LIST, after, limit, wanted.subject, wanted.active, wanted.unused_since)
    return [Token(**dict(row)) for row in rows]
