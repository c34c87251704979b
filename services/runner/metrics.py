"""What the runner measures of runs and of the queue."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from libs.common.background import beside
from libs.common.database import Pool, is_connection_lost
from libs.common.log import get_logger
from libs.common.models import RunState
from services.runner.store import Assignment, Timings, queue_depth

_QUEUE_SECONDS = 2.0
_PHASE_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_log = get_logger("runner")


class RunMetrics:
    """The figures of one runner, except for the queue, which all runners share and each shows."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._phases = Histogram(
            "stowage_run_phase_seconds",
            "How long each phase of an attempt took.",
            ("phase",),
            buckets=_PHASE_BUCKETS,
            registry=registry,
        )
        self._finished = Counter(
            "stowage_runs_finished", "Runs that this runner brought to an end.", ("state",), registry=registry
        )
        for state in RunState:
            if state.final:
                self._finished.labels(state.value)
        self._executing = Gauge("stowage_runs_executing", "Runs that this runner holds.", registry=registry)
        self._lost = Counter(
            "stowage_run_leases_lost", "Attempts that found their run in other hands.", registry=registry
        )
        self._fetched = Counter("stowage_run_fetched_bytes", "Bytes of bundles and inputs.", registry=registry)
        self._queued = Gauge("stowage_runs_queued", "Runs that wait for a runner.", registry=registry)
        self._waiting = Gauge(
            "stowage_runs_queued_oldest_seconds", "How long the oldest of them has waited.", registry=registry
        )

    @contextlib.contextmanager
    def executing(self) -> Iterator[None]:
        """A run is held for as long as the context is open."""
        with self._executing.track_inprogress():
            yield

    def attempted(self, run: Assignment, timings: Timings, fetched_bytes: int) -> None:
        """An attempt is over, whatever it came to."""
        phases = {
            "queued": run.queued_ms,
            "first_byte": timings.first_byte_ms,
            "fetch": timings.fetch_ms,
            "start": timings.start_ms,
            "handler": timings.handler_ms,
            "upload": timings.upload_ms,
            "remove": timings.remove_ms,
        }
        for phase, milliseconds in phases.items():
            if milliseconds is not None:
                self._phases.labels(phase).observe(milliseconds / 1000)
        self._fetched.inc(fetched_bytes)

    def finished(self, state: RunState) -> None:
        """A run has ended, and that is recorded."""
        self._finished.labels(state.value).inc()

    def lease_lost(self) -> None:
        """An attempt found that another has its run."""
        self._lost.inc()

    @contextlib.asynccontextmanager
    async def watching_queue(self, pool: Pool) -> AsyncIterator[None]:
        """Look at the queue now and then for as long as the context is open: so a scrape costs no query."""
        async with beside(self._look_at_queue(pool)):
            yield

    async def _look_at_queue(self, pool: Pool) -> None:
        while True:
            try:
                async with pool.acquire() as connection:
                    depth = await queue_depth(connection)
            except Exception as error:  # noqa: BLE001  # the next look may succeed
                if not is_connection_lost(error):
                    _log.exception("queue_not_measured")
            else:
                self._queued.set(depth.runs)
                self._waiting.set(depth.oldest_seconds)
            await asyncio.sleep(_QUEUE_SECONDS)
