"""PostgreSQL: a pool whose connections speak JSON, and a hub for notifications."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from libs.common.background import beside

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

_CONNECTION_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # also "cannot switch to state", when a connection breaks at an awkward moment
    OSError,
    TimeoutError,
)


def is_connection_lost(error: BaseException) -> bool:
    """Whether PostgreSQL was away, so that trying the same again later may succeed."""
    # asyncpg also raises an InterfaceError for values that it can't encode; that one is a ValueError as well.
    return isinstance(error, _CONNECTION_LOST) and not isinstance(error, ValueError)


async def _prepare(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    for type_name in ("json", "jsonb"):
        await connection.set_type_codec(
            type_name,
            encoder=lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")),
            decoder=json.loads,
            schema="pg_catalog",
        )


async def _leave_as_it_is(_connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Open transactions and listeners are ended by asyncpg itself."""


async def _connect(*arguments: Any, **options: Any) -> "asyncpg.Connection[asyncpg.Record]":
    try:
        return await asyncpg.connect(*arguments, **options)
    except FileNotFoundError as error:  # of the socket: told apart from a file that a request is about
        raise ConnectionRefusedError(error.errno, "PostgreSQL's socket is not there") from error
    except asyncpg.exceptions.ClientConfigurationError as error:
        raise ConnectionError(f"the database's URL can't be used: {error}") from error


@asynccontextmanager
async def open_pool(url: str, *, size: int, application_name: str) -> AsyncIterator[Pool]:
    """A pool of at most `size` connections. `json` and `jsonb` columns are Python values in both directions.

    Sessions are not reset when a connection is given back, which would cost each user a round trip: whoever changes a
    session's settings changes them back, and session locks are only taken through `session_lock`.
    """
    pool = await asyncpg.create_pool(
        url,
        min_size=1,
        max_size=size,
        connect=_connect,
        init=_prepare,
        reset=_leave_as_it_is,
        command_timeout=60,
        server_settings={"application_name": application_name, "timezone": "UTC"},
    )
    try:
        yield pool
    finally:
        try:
            await asyncio.wait_for(pool.close(), timeout=10)
        except TimeoutError:
            pool.terminate()


@asynccontextmanager
async def session_lock(connection: Connection, name: str, *, wait: bool = True) -> AsyncIterator[bool]:
    """Whether this session holds the lock called `name` while the context is open; without `wait` it may not.

    The lock needs no transaction. Where it can't be released the connection is closed, and with the session the lock
    is gone.
    """
    lock = "pg_advisory_lock" if wait else "pg_try_advisory_lock"
    try:
        held = await connection.fetchval(f"SELECT {lock}(hashtextextended($1, 0))", name) is not False
    except BaseException:
        connection.terminate()  # it may have been granted all the same
        raise
    try:
        yield held
    finally:
        if held and not connection.is_closed():
            try:
                await connection.execute("SELECT pg_advisory_unlock(hashtextextended($1, 0))", name)
            except BaseException:
                connection.terminate()
                raise


@asynccontextmanager
async def alone(pool: Pool, name: str) -> AsyncIterator[bool]:
    """Whether nobody else is at the work called `name` while the context is open. It is tried, not waited for."""
    async with pool.acquire() as connection, session_lock(connection, name, wait=False) as mine:
        yield mine


class Notifications:
    """Wakes waiters when PostgreSQL notifies a channel.

    A notification only says "look again": payloads name the subject, state is always read from tables. A lost
    connection is replaced, and everybody is woken then, since notifications sent in between are gone.
    """

    def __init__(self, url: str, channel: str) -> None:
        self._url = url
        self._channel = channel
        self._events: dict[str, set[asyncio.Event]] = {}

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Notifications"]:
        """Listen for as long as the context is open."""
        async with beside(self._listen()):
            yield self

    @asynccontextmanager
    async def subscribed(self, subject: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set whenever the channel is notified with `subject` as payload; the waiter clears it."""
        event = asyncio.Event()
        self._events.setdefault(subject, set()).add(event)
        try:
            yield event
        finally:
            waiting = self._events[subject]
            waiting.discard(event)
            if not waiting:
                del self._events[subject]

    async def _listen(self) -> None:
        while True:
            try:
                connection = await asyncpg.connect(self._url, timeout=10)
            except (OSError, asyncpg.PostgresError, TimeoutError):
                await asyncio.sleep(1)
                continue
            lost = asyncio.Event()
            connection.add_termination_listener(lambda _, lost=lost: lost.set())
            try:
                await connection.add_listener(self._channel, self._notified)  # type: ignore[arg-type]
                self._wake_all()
                await lost.wait()
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.sleep(1)
            finally:
                connection.terminate()

    def _notified(self, _connection: object, _pid: int, _channel: str, payload: str) -> None:
        for event in self._events.get(payload, ()):
            event.set()

    def _wake_all(self) -> None:
        for events in self._events.values():
            for event in events:
                event.set()
