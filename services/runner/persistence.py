"""Writing to PostgreSQL although it may be away for a while."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from libs.common.database import is_connection_lost
from libs.common.log import get_logger

Value = TypeVar("Value")

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_log = get_logger("runner")


async def persistently(action: Callable[[], Awaitable[Value]], *, what: str, run_id: str) -> Value:
    """Do `action`, again and again while PostgreSQL is away. It must bear to be done twice."""
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return await action()
        except Exception as error:
            if not is_connection_lost(error):
                raise
            _log.warning("database_away", what=what, run=run_id, error=type(error).__name__)
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


@asynccontextmanager
async def best_effort(what: str, run_id: str) -> AsyncIterator[None]:
    """What is done here may be left out while PostgreSQL is away."""
    try:
        yield
    except Exception as error:
        if not is_connection_lost(error):
            raise
        _log.warning("database_away", what=what, run=run_id, error=type(error).__name__)
