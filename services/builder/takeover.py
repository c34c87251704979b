"""Taking over the imports that other builders left: they were stopped and handed them back, or they were lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from libs.common.background import beside
from libs.common.client import RegistryClient
from libs.common.completion import to_the_end
from libs.common.database import Notifications
from libs.common.errors import StowageError
from libs.common.log import get_logger
from services.builder.ledger import IMPORTS_LEFT, Ledger
from services.builder.settings import BuilderSettings
from services.builder.worker import Worker

_log = get_logger("builder")


class Takeover:
    """Looks for imports that have no builder, at once, regularly, and when one is handed back.

    Several builders may do so at the same time. None takes more than it has room for: the rest is for the others, and
    does not count as lost with this one.
    """

    def __init__(
        self,
        settings: BuilderSettings,
        ledger: Ledger,
        worker: Worker,
        registry: RegistryClient,
        notifications: Notifications,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._worker = worker
        self._registry = registry
        self._notifications = notifications

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look for as long as the context is open."""
        async with beside(self._watch()):
            yield

    async def _watch(self) -> None:
        async with self._notifications.subscribed(IMPORTS_LEFT) as news:
            while True:
                await self._worker.room()
                news.clear()
                if not await self._look():
                    await self._wait(news)

    async def _wait(self, news: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(self._settings.recovery_seconds):
                await news.wait()
        except TimeoutError:
            return

    async def _look(self) -> bool:
        """Take one import over, if there is one."""
        try:
            if not await self._ledger.is_import_left(self._settings.lost_seconds, but=self._worker.held):
                return False
            # Everything may be starting at once: builds would fail while the registry is not there yet.
            async with self._registry.request("GET", "/readyz"):
                pass
            # Undivided: what is taken is also begun.
            return await to_the_end(self._take())
        except StowageError as error:
            _log.warning("takeover_waits", error=error.message)
        except Exception as error:  # noqa: BLE001  # PostgreSQL may be away; whatever it is, the next look is another try
            _log.warning("takeover_failed", error=f"{type(error).__name__}: {error}")
        return False

    async def _take(self) -> bool:
        if self._worker.stopping:
            return False
        order = await self._ledger.take_over(self._settings.lost_seconds, but=self._worker.held)
        if order is None:
            return False
        _log.warning(
            "import_taken_over",
            import_id=order.import_id,
            example=order.example,
            because=order.interruption,
            times_lost=order.times_lost,
        )
        self._worker.accept(order)
        return True
