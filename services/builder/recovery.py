"""Setting right what a lost builder left beside its imports: its workspaces, and logs of builds that had ended."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from libs.common.background import beside
from libs.common.completion import in_thread
from libs.common.database import Pool
from libs.common.errors import StowageError
from libs.common.log import get_logger
from services.builder import store
from services.builder.builds import Builds
from services.builder.settings import BuilderSettings
from services.builder.worker import DATABASE_ERRORS
from services.builder.workspace import sweep

_log = get_logger("builder")


class Recovery:
    """Looks for what was lost, at once and then regularly. Several builders may do so at the same time."""

    def __init__(self, settings: BuilderSettings, pool: Pool, builds: Builds) -> None:
        self._settings = settings
        self._pool = pool
        self._builds = builds

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look now, and regularly while the context is open."""
        await self._look()
        async with beside(self._look_regularly()):
            yield

    async def _look_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._settings.recovery_seconds)
            await self._look()

    async def _look(self) -> None:
        try:
            if swept := await in_thread(sweep, self._settings.work_dir):
                _log.warning("workspaces_swept", workspaces=swept)
        except OSError as error:
            _log.warning("workspaces_not_swept", error=str(error))
        try:
            async with self._pool.acquire() as connection:
                forgotten = await store.list_unarchived_builds(connection, self._settings.lost_seconds)
            for build_id in forgotten:
                await self._builds.archive(build_id)
        except (*DATABASE_ERRORS, StowageError) as error:
            _log.warning("recovery_failed", error=str(error))
