"""pgqueuer's way to PostgreSQL: a connection of its own that is replaced whenever it is lost."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeVar

import asyncpg
from pgqueuer.adapters.drivers.asyncpg import Relay
from pgqueuer.core.tm import TaskManager
from pgqueuer.ports.driver import NotifyCallback

from libs.common.database import is_connection_lost
from libs.common.log import get_logger

Value = TypeVar("Value")
_Connection = Any  # asyncpg's connection class is generic for type checkers only

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_COMMAND_SECONDS = 30.0
_CHANGED = "table_changed_event"
_log = get_logger("runner")


class ReconnectingDriver:
    """A pgqueuer `Driver` whose statements are tried again on a new connection when the old one is lost.

    pgqueuer's own drivers end the queue manager then, which waits for the runs at work and lets their heartbeats stop.
    A statement may so be done twice: an entry that was leased twice belongs to this runner either way, or is leased
    again when its heartbeat stops. After `shutdown` is set nothing is tried again.
    """

    def __init__(self, url: str, *, application_name: str) -> None:
        self._url = url
        self._application_name = application_name
        self._connection: _Connection = None
        self._lock = asyncio.Lock()
        self._listeners: list[tuple[str, NotifyCallback]] = []
        self._shutdown = asyncio.Event()
        self._told = False

    def expect_news(self) -> None:
        """Tell listeners of the next change, and then of none until this is called again.

        pgqueuer looks at the queue once for each change that it hears of. A thousand runs that were accepted while both
        places were taken would make it look a thousand times.
        """
        self._told = False

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        """Rows of a query."""
        return [dict(row) for row in await self._persistently(lambda connection: connection.fetch(query, *args))]

    async def execute(self, query: str, *args: object) -> str:
        """The status of a statement."""
        return await self._persistently(lambda connection: connection.execute(query, *args))

    async def notify(self, channel: str, payload: str) -> None:
        """Send a notification."""
        await self.execute("SELECT pg_notify($1, $2)", channel, payload)

    async def add_listener(self, channel: str, callback: NotifyCallback) -> None:
        """Listen, also on every connection that follows."""

        def tell(payload: str | bytes | bytearray) -> None:
            if _CHANGED not in str(payload):
                callback(payload)
            elif not self._told:
                self._told = True
                callback(payload)

        self._listeners.append((channel, tell))
        await self._persistently(lambda connection: connection.add_listener(channel, Relay(tell)))

    @property
    def shutdown(self) -> asyncio.Event:
        """Set when the driver shall give up rather than wait."""
        return self._shutdown

    @property
    def tm(self) -> TaskManager:
        """No background tasks."""
        return TaskManager()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                await connection.close(timeout=5)

    async def _persistently(self, action: Callable[[_Connection], Awaitable[Value]]) -> Value:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                async with self._lock:
                    return await action(await self._connected())
            except Exception as error:
                if not is_connection_lost(error) or self._shutdown.is_set():
                    raise
                _log.warning("queue_connection_lost", error=type(error).__name__)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._shutdown.wait()
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _connected(self) -> _Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = None
            connection = await asyncpg.connect(
                self._url,
                timeout=10,
                command_timeout=_COMMAND_SECONDS,
                server_settings={"application_name": self._application_name, "timezone": "UTC"},
            )
            for channel, callback in self._listeners:
                await connection.add_listener(channel, Relay(callback))
            self._connection = connection
        return self._connection
