"""The loop that leases runs from the queue and executes them, some at a time."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta

from pgqueuer.core.qm import QueueManager
from pgqueuer.domain.errors import RetryRequested
from pgqueuer.domain.models import Job

from libs.common.log import get_logger
from libs.common.queue import QUEUE_SETTINGS, RUN_ENTRYPOINT, held_entries
from services.runner.queue_driver import ReconnectingDriver

_LONGEST_POLL_SECONDS = 5.0
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 10.0
_BROKEN_PAUSE_SECONDS = 2.0
_log = get_logger("runner")


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How the queue is served."""

    database_url: str
    concurrency: int
    lease_seconds: float
    drain_seconds: float


@dataclass(slots=True)
class Stopping:
    """That the runner shall leave: `draining` when it takes nothing new, `leaving` when runs are to be given back, and
    `closing` when it is done with them, and closes its connections.
    """

    draining: asyncio.Event = field(default_factory=asyncio.Event)
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    closing: asyncio.Event = field(default_factory=asyncio.Event)


class Worker:
    """Leases runs until told to stop.

    `execute` sees one run through, or says after how many seconds its entry is to be leased again. Whatever it raises
    is logged and the entry queued again as well: attempts are counted where the run is leased, so that this ends.
    """

    def __init__(
        self, settings: WorkerSettings, execute: Callable[[str], Awaitable[float | None]], stopping: Stopping
    ) -> None:
        self._settings = settings
        self._execute = execute
        self._stopping = stopping
        self.alive = False

    async def check(self) -> None:
        """Raise unless runs are being leased."""
        if not self.alive:
            raise RuntimeError("the queue is not being served")

    async def serve(self) -> None:
        """Serve the queue until `draining`; then let runs go on for a while, give the rest back, and return."""
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopping.draining.is_set():
            try:
                await self._serve_once()
                pause = _FIRST_PAUSE_SECONDS
            except Exception:  # noqa: BLE001  # a schema that is not there yet, a bug: serving begins anew
                _log.exception("worker_broke")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._stopping.draining.wait()
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _serve_once(self) -> None:
        settings = self._settings
        driver = ReconnectingDriver(settings.database_url, application_name="stowage-runner-queue")
        manager = QueueManager(held_entries(driver, before_look=driver.expect_news), channel=QUEUE_SETTINGS.channel)
        manager.entrypoint(RUN_ENTRYPOINT, accepts_context=False)(self._run)
        stop = asyncio.create_task(self._stop(manager, driver))
        self.alive = True
        try:
            await manager.run(
                dequeue_timeout=timedelta(seconds=min(_LONGEST_POLL_SECONDS, settings.lease_seconds / 3)),
                batch_size=1,
                max_concurrent_tasks=settings.concurrency,
                heartbeat_timeout=timedelta(seconds=settings.lease_seconds),
                log_aggregation_interval=timedelta(0),  # its log is pruned and not read
            )
        finally:
            self.alive = False
            stop.cancel()
            await asyncio.gather(stop, return_exceptions=True)
            await driver.close()

    async def _stop(self, manager: QueueManager, driver: ReconnectingDriver) -> None:
        await self._stopping.draining.wait()
        manager.shutdown.set()
        driver.shutdown.set()
        await asyncio.sleep(self._settings.drain_seconds)
        self._stopping.leaving.set()

    async def _run(self, job: Job) -> None:
        run_id = (job.payload or b"").decode("utf-8", "replace")
        try:
            again_seconds = await self._execute(run_id)
        except Exception:  # noqa: BLE001  # logged here, and the entry is queued again
            _log.exception("attempt_broke", run=run_id)
            again_seconds = _BROKEN_PAUSE_SECONDS
        if again_seconds is not None:
            raise RetryRequested(delay=timedelta(seconds=again_seconds))
