"""Requests that may be repeated: with the same `Idempotency-Key` they are carried out once and answered the same.

Each service has a table `<schema>.idempotency_keys`. A key belongs to a subject. Whoever comes with it first claims it,
for a while: if the process dies, somebody else may take over. The answer is kept in the transaction of the change, so
whoever was taken over from can't make the change any more, and no change is made without its answer being kept.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import asyncpg
from aiohttp import web
from pydantic import BaseModel

from libs.common.api import Header
from libs.common.background import beside
from libs.common.completion import to_the_end
from libs.common.database import Connection, Pool
from libs.common.errors import Busy, InvalidRequest, Unprocessable
from libs.common.identifiers import new_id
from libs.common.log import get_logger
from libs.common.web import PRINCIPAL

Result = TypeVar("Result")
Conclude: TypeAlias = Callable[[Connection, Result], Awaitable[None]]
"""Called in the transaction of a change, with what came of it."""

NAME = "Idempotency-Key"
IDEMPOTENCY_KEY = Header(
    NAME,
    "1 to 200 printable ASCII characters. Repeated with the same key, the request is answered as the first time, with "
    "the header `Idempotent-Replayed`.",
    "daily-2026-11-23",
)
IDEMPOTENCY_ERRORS = ("idempotency-key-reused", "idempotency-key-in-use")

_KEY = re.compile(r"[\x20-\x7e]{1,200}")
_HELD_SECONDS = 15
"""How long a claim holds after its process died. Requests may take longer: what is concluded then is refused."""

_FORGET_SECONDS = 600.0
_KEPT_HEADERS = ("Location", "Cache-Control")

_log = get_logger("idempotency")


async def nothing(_connection: Connection, _result: object) -> None:
    """Conclude nothing: nobody will ask again."""


class Claim:
    """The right to carry out a request; one without a key is everybody's."""

    def __init__(self, keys: "IdempotencyKeys | None" = None, subject: str = "", key: str = "") -> None:
        self.subject = subject
        self.key = key
        self.holder = new_id("claim")
        self._keys = keys

    async def keep(self, connection: Connection, answer: web.Response) -> None:
        """Keep the answer. Call it in the transaction of the change; Busy where somebody else has taken over."""
        if self._keys is not None:
            await self._keys.keep(connection, self, answer)


@dataclass(frozen=True, slots=True)
class _Kept:
    status: int
    headers: dict[str, str]
    body: str

    def answer(self) -> web.Response:
        return web.Response(status=self.status, text=self.body, headers={**self.headers, "Idempotent-Replayed": "true"})


class IdempotencyKeys:
    """The keys of one service, kept for `keep_seconds`."""

    def __init__(self, pool: Pool, schema: str, *, keep_seconds: float) -> None:
        self._pool = pool
        self._keep_seconds = keep_seconds
        table = f"{schema}.idempotency_keys"
        # The schema is a constant of the service, never input. One that was claimed and not answered is free again
        # when its time is up, for the same request; one that is old for any.
        self._claim = f"""
            INSERT INTO {table} AS old (subject, key, request_digest, holder, held_until, created_at)
            VALUES ($1, $2, $3, $4, now() + make_interval(secs => $5), now())
            ON CONFLICT (subject, key) DO UPDATE
                SET request_digest = excluded.request_digest, holder = excluded.holder,
                    held_until = excluded.held_until, created_at = excluded.created_at,
                    status = NULL, headers = NULL, body = NULL
                WHERE old.created_at < now() - make_interval(secs => $6) AND old.held_until < now()
                   OR old.status IS NULL AND old.held_until < now() AND old.request_digest = excluded.request_digest
            RETURNING true
        """  # noqa: S608
        self._find = f"""
            SELECT request_digest, status, headers, body,
                   ceil(extract(epoch FROM greatest(held_until - now(), interval '1 second')))::int AS held_seconds
            FROM {table}
            WHERE subject = $1 AND key = $2
        """  # noqa: S608
        self._keep = f"""
            UPDATE {table}
            SET status = $4, headers = $5, body = $6
            WHERE subject = $1 AND key = $2 AND holder = $3 AND status IS NULL
            RETURNING true
        """  # noqa: S608
        self._release = f"""
            DELETE FROM {table} WHERE subject = $1 AND key = $2 AND holder = $3 AND status IS NULL
        """  # noqa: S608
        self._forget = f"""
            DELETE FROM {table} WHERE created_at < now() - make_interval(secs => $1) AND held_until < now()
        """  # noqa: S608

    async def claim(self, subject: str, key: str, request_digest: bytes) -> Claim | web.Response:
        """The right to carry out the request, or the answer that it was given.

        Raises Unprocessable where the key was used for another request, Busy while somebody is at work on this one.
        """
        claim = Claim(self, subject, key)
        while True:
            async with self._pool.acquire() as connection:
                claimed = await connection.fetchval(
                    self._claim, subject, key, request_digest, claim.holder, _HELD_SECONDS, self._keep_seconds
                )
                if claimed:
                    return claim
                found = await connection.fetchrow(self._find, subject, key)
            if found is not None:  # else it was released in between
                return _answer_of(found, key, request_digest)

    async def keep(self, connection: Connection, claim: Claim, answer: web.Response) -> None:
        """Keep the answer to what was claimed; Busy where it is no longer held."""
        headers = {name: answer.headers[name] for name in (*_KEPT_HEADERS, "Content-Type") if name in answer.headers}
        kept = await connection.fetchval(
            self._keep, claim.subject, claim.key, claim.holder, answer.status, headers, answer.text
        )
        if not kept:
            raise _in_use(claim.key, retry_after_seconds=1)

    async def conclude(self, claim: Claim, answer: web.Response) -> None:
        """Keep the answer unless that was done with the change. Where it can't be kept, the key is free in a while."""
        try:
            async with self._pool.acquire() as connection:
                await self.keep(connection, claim, answer)
        except Busy:
            return
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            _log.warning("answer_not_kept", key=claim.key, error=str(error) or type(error).__name__)

    async def release(self, claim: Claim) -> None:
        """Give up a claim that came to nothing: the request may be tried again at once."""
        try:
            async with self._pool.acquire() as connection:
                await connection.execute(self._release, claim.subject, claim.key, claim.holder)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            _log.warning("key_not_released", key=claim.key, error=str(error) or type(error).__name__)

    @asynccontextmanager
    async def forgetting(self) -> AsyncIterator[None]:
        """Forget what is old, now and then while the context is open."""
        async with beside(self._forget_regularly()):
            yield

    async def forget(self) -> None:
        """Forget what is old."""
        async with self._pool.acquire() as connection:
            await connection.execute(self._forget, self._keep_seconds)

    async def _forget_regularly(self) -> None:
        while True:
            await asyncio.sleep(min(_FORGET_SECONDS, self._keep_seconds))
            try:
                await self.forget()
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                _log.warning("keys_not_forgotten", error=str(error) or type(error).__name__)


IDEMPOTENCY_KEYS = web.AppKey("idempotency_keys", IdempotencyKeys)


async def once(
    request: web.Request, content: bytes | BaseModel, work: Callable[[Claim], Awaitable[web.Response]]
) -> web.Response:
    """What `work` answers, or where the request has a key that was answered already, that.

    `content` is what was asked for, beside method and path. A refusal is not kept: whoever asks again may have mended
    what was wrong. InvalidRequest for what can't be a key; what `IdempotencyKeys.claim` raises.
    """
    key = request.headers.get(NAME)
    if key is None:
        return await work(Claim())
    if not _KEY.fullmatch(key):
        raise InvalidRequest(f"the header {NAME} must have 1 to 200 printable ASCII characters.")
    keys = request.app[IDEMPOTENCY_KEYS]
    claimed = await keys.claim(request[PRINCIPAL].subject, key, _digest(request, content))
    if isinstance(claimed, web.Response):
        return claimed
    try:
        answer = await work(claimed)
    except BaseException:
        await to_the_end(keys.release(claimed))
        raise
    await to_the_end(keys.conclude(claimed, answer))
    return answer


def _digest(request: web.Request, content: bytes | BaseModel) -> bytes:
    body = content if isinstance(content, bytes) else content.model_dump_json().encode()
    hashed = hashlib.sha256(f"{request.method} {request.path_qs}\0".encode())
    hashed.update(body)
    return hashed.digest()


def _answer_of(found: asyncpg.Record, key: str, request_digest: bytes) -> web.Response:
    if found["request_digest"] != request_digest:
        raise Unprocessable(
            f"the idempotency key “{key}” was used for another request. Use a new key for each thing that you want.",
            kind="idempotency-key-reused",
        )
    if found["status"] is None:
        raise _in_use(key, retry_after_seconds=found["held_seconds"])
    return _Kept(found["status"], found["headers"], found["body"]).answer()


def _in_use(key: str, *, retry_after_seconds: int) -> Busy:
    return Busy(
        f"a request with the idempotency key “{key}” is being carried out just now. Ask again in a moment: the answer "
        "will be the same.",
        kind="idempotency-key-in-use",
        retry_after_seconds=retry_after_seconds,
    )
