"""Tokens: made, shown without their secret, revoked, and recognised when somebody brings one."""

import asyncio
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import asyncpg

from libs.common import audit
from libs.common.audit import Origin
from libs.common.auth import Grant, Principal, known_grants, new_token, parse_scopes, scope_names, token_hash
from libs.common.database import Connection, Pool
from libs.common.errors import Conflict, InvalidRequest, NotFound
from libs.common.idempotency import Conclude, nothing
from libs.common.identifiers import new_id
from libs.common.log import get_logger
from libs.common.models import TokenRequest
from libs.common.rate import UnknownTokens
from services.registry.store import tokens
from services.registry.store.tokens import NewToken, Token, TokenFilter

_MIN_TOKEN_LENGTH = 32
_MAX_CACHED = 10_000
_REFUSAL_SECONDS = 60.0

_log = get_logger("registry")


class Authenticator:
    """Recognises tokens, and remembers for `cache_seconds` whom one speaks for. Unknown ones are not remembered."""

    def __init__(self, pool: Pool, unknown: UnknownTokens, *, cache_seconds: float) -> None:
        self._pool = pool
        self._unknown = unknown
        self._cache_seconds = cache_seconds
        self._known: dict[bytes, tuple[float, Principal]] = {}
        self._used: dict[str, float] = {}  # token id -> when, until it is noted

    async def principal(self, token: str) -> Principal | None:
        """Whom a token speaks for; None where it is unknown, expired or revoked.

        TooManyRequests while too many are tried that nobody knows.
        """
        principal = await self._recognise(token)
        if principal is not None:
            self._used[principal.token_id] = time.monotonic()
        return principal

    async def note_use(self) -> None:
        """Record when tokens were used last: one statement for all since the last time."""
        used, self._used = self._used, {}
        if not used:
            return
        now = time.monotonic()
        async with self._pool.acquire() as connection:
            await tokens.note_use(connection, {token_id: now - moment for token_id, moment in used.items()})

    async def note_use_regularly(self, interval_seconds: float) -> None:
        """Record it every `interval_seconds`, until cancelled. While the database is away nothing is recorded."""
        while True:
            await asyncio.sleep(interval_seconds)
            try:
                await self.note_use()
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                _log.warning("token_use_not_noted", error=str(error) or type(error).__name__)

    async def _recognise(self, token: str) -> Principal | None:
        hashed = token_hash(token)
        now = time.monotonic()
        until, principal = self._known.get(hashed, (0.0, None))
        if principal is not None and now < until:
            return principal
        was_known = principal is not None
        if not was_known:
            self._unknown.admit()
        async with self._pool.acquire() as connection:
            live = await tokens.find_live(connection, hashed)
            if live is None:
                self._known.pop(hashed, None)
                await _note_refusal(connection, hashed)
                return None
        if not was_known:
            self._unknown.was_known()
        principal = Principal(live.subject, known_grants(live.scopes), live.id)
        seconds = self._cache_seconds
        if live.expires_at is not None:
            seconds = min(seconds, (live.expires_at - datetime.now(UTC)).total_seconds())
        if len(self._known) >= _MAX_CACHED:
            self._known.clear()
        self._known[hashed] = (now + seconds, principal)
        return principal

    def forget(self) -> None:
        """Ask again for everybody: a token was revoked. Whose token was known before is not a stranger for that."""
        self._known = {hashed: (0.0, principal) for hashed, (_, principal) in self._known.items()}


async def create(
    pool: Pool, request: TokenRequest, origin: Origin, *, conclude: Conclude[Token] = nothing
) -> tuple[str, Token]:
    """Make a token; its secret, which is known only now, and its record."""
    scopes = parse_scopes(request.scopes)
    expires_at = request.expires_at
    if expires_at is not None and (expires_at.tzinfo is None or expires_at <= datetime.now(UTC)):
        raise InvalidRequest("expiresAt must be in the future and have a time zone, such as 2030-01-01T00:00:00Z.")
    secret = new_token()
    async with pool.acquire() as connection, connection.transaction():
        record = await _record(connection, secret, request.subject, scopes, origin, expires_at)
        if record is None:
            raise RuntimeError("a token of 256 random bits exists already")
        await conclude(connection, record)
    return secret, record


async def revoke(pool: Pool, token_id: str, origin: Origin) -> Token:
    """Make a token useless; NotFound where there is none. One that is revoked already stays as it is."""
    async with pool.acquire() as connection, connection.transaction():
        found = await tokens.lock(connection, token_id)
        if found is None:
            raise NotFound("there is no token with this id. GET /tokens lists what there is.", kind="token-not-found")
        if found.revoked_at is not None:
            return found
        revoked = await tokens.revoke(connection, token_id)
        await audit.append(
            connection, origin, audit.Event("token.revoked", f"token/{found.subject}", detail={"id": token_id})
        )
    _log.info("token_revoked", id=token_id, subject=found.subject, actor=origin.actor)
    return revoked


async def list_page(pool: Pool, wanted: TokenFilter, *, after: str | None, limit: int) -> list[Token]:
    """Tokens, oldest first."""
    async with pool.acquire() as connection:
        return await tokens.list_page(connection, wanted, after=after, limit=limit)


async def register(
    connection: Connection, secret: str, subject: str, scopes: frozenset[Grant], origin: Origin
) -> Token:
    """Record a token whose secret is given. Recording the same again changes nothing; otherwise Conflict."""
    async with connection.transaction():
        record = await _record(connection, secret, subject, scopes, origin, None)
        if record is not None:
            return record
        existing = await tokens.find(connection, token_hash(secret))
    if existing is None:
        raise RuntimeError("a token is there and not there")
    if existing.revoked_at is not None:
        raise Conflict(f"the token of “{existing.subject}” was revoked. Remove its file to make a new one.")
    if (existing.subject, sorted(existing.scopes)) != (subject, scope_names(scopes)):
        raise Conflict(
            f"the token is registered already, for “{existing.subject}” with {', '.join(existing.scopes)}. "
            "Remove its file to make another one."
        )
    return existing


async def read_or_make_file(path: Path) -> str:
    """The token in a file, which is made with a new one and readable by its owner only, where it is missing."""
    secret = await asyncio.to_thread(_read_or_make_file, path)
    if len(secret) < _MIN_TOKEN_LENGTH or not secret.isascii() or not secret.isprintable() or " " in secret:
        raise InvalidRequest(
            f"{path} does not hold a token: at least {_MIN_TOKEN_LENGTH} printable characters were expected. "
            "Remove it to have a new one made."
        )
    return secret


def _read_or_make_file(path: Path) -> str:
    # Written under another name first: whoever finds the file finds a whole token in it.
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        secret = new_token()
    made = path.with_name(f".{path.name}.{new_id('new')}")
    try:
        descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{secret}\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(made, path)
        except FileExistsError:
            return path.read_text().strip()
    finally:
        made.unlink(missing_ok=True)
    return secret


async def _note_refusal(connection: Connection, hashed: bytes) -> None:
    """Put the use of a revoked or expired token into the audit trail, at most once a minute for each."""
    async with connection.transaction():
        refused = await tokens.note_refusal(connection, hashed, interval_seconds=_REFUSAL_SECONDS)
        if refused is None:
            return
        why = "revoked" if refused.revoked else "expired"
        event = audit.Event("token.refused", f"token/{refused.subject}", detail={"id": refused.id, "why": why})
        await audit.append(connection, audit.origin_of_caller(refused.subject), event)
    _log.warning("token_refused", id=refused.id, subject=refused.subject, why=why)


async def _record(
    connection: Connection,
    secret: str,
    subject: str,
    scopes: frozenset[Grant],
    origin: Origin,
    expires_at: datetime | None,
) -> Token | None:
    """Record a token and the event; None where its hash is there. Inside a transaction."""
    names = scope_names(scopes)
    record = await tokens.insert(
        connection, NewToken(new_id("tok"), token_hash(secret), subject, names, origin.actor, expires_at)
    )
    if record is not None:
        await audit.append(
            connection,
            origin,
            audit.Event("token.created", f"token/{subject}", detail={"id": record.id, "scopes": names}),
        )
        _log.info("token_created", id=record.id, subject=subject, scopes=names, actor=origin.actor)
    return record
