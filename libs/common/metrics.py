"""What a service measures of itself, in the format of Prometheus.

Each application has a registry of its own, so that several can live in one process. Labels have few values: never a
slug, an id or anything else that callers choose.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder

from libs.common.background import beside
from libs.common.database import Pool

_LAG_SAMPLE_SECONDS = 0.05
_LAG_SLOT_SECONDS = 10.0
_LAG_SLOTS = 6
_LAG_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_REQUEST_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0, 60.0)


class Metrics:
    """The metrics of one application. A service adds its own to `registry`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Histogram(
            "stowage_http_request_duration_seconds",
            "From a request's headers to the end of its answer, by route template.",
            ("method", "route", "status"),
            buckets=_REQUEST_BUCKETS,
            registry=self.registry,
        )
        self._requests_of: dict[tuple[str, str, int], Histogram] = {}
        self._lag = Histogram(
            "stowage_event_loop_lag_seconds",
            "How much later than asked the event loop woke a task, sampled every 50 ms.",
            buckets=_LAG_BUCKETS,
            registry=self.registry,
        )
        self._largest_lag = _RecentMaximum()
        Gauge(
            "stowage_event_loop_lag_max_seconds",
            "The largest lag of the last minute.",
            registry=self.registry,
        ).set_function(self._largest_lag.value)
        ProcessCollector(registry=self.registry)

    def observe_request(self, request: web.Request, status: int, seconds: float) -> None:
        """Count a request that was answered, or broke off, with `status` after `seconds`."""
        resource = request.match_info.route.resource
        # Where no route matched, path and method are whatever somebody sent.
        route = resource.canonical if resource is not None else "unmatched"
        method = request.method if request.method in hdrs.METH_ALL else "other"
        found = self._requests_of.get((method, route, status))
        if found is None:
            found = self._requests_of[method, route, status] = self._requests.labels(method, route, str(status))
        found.observe(seconds)

    def watch_pool(self, pool: Pool) -> None:
        """Show how many of the connections of `pool` are used and idle, and how many there may be."""
        connections = Gauge(
            "stowage_database_connections",
            "Open connections of the pool to PostgreSQL.",
            ("state",),
            registry=self.registry,
        )
        connections.labels("used").set_function(lambda: pool.get_size() - pool.get_idle_size())
        connections.labels("idle").set_function(pool.get_idle_size)
        Gauge(
            "stowage_database_connections_max",
            "Connections that the pool may open.",
            registry=self.registry,
        ).set_function(pool.get_max_size)

    @asynccontextmanager
    async def watching_loop(self) -> AsyncIterator[None]:
        """Sample the lag of the running event loop for as long as the context is open."""
        async with beside(self._sample_lag()):
            yield

    async def answer(self, request: web.Request) -> web.Response:
        """Get figures for Prometheus, in the format that the header `Accept` asks for."""
        encode, content_type = choose_encoder(request.headers.get(hdrs.ACCEPT, ""))
        # Some hundred series take milliseconds to write down.
        body = await asyncio.to_thread(encode, self.registry)
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})

    async def _sample_lag(self) -> None:
        while True:
            asked = time.perf_counter()
            await asyncio.sleep(_LAG_SAMPLE_SECONDS)
            lag = max(0.0, time.perf_counter() - asked - _LAG_SAMPLE_SECONDS)
            self._lag.observe(lag)
            self._largest_lag.add(lag)


class _RecentMaximum:
    """The largest value of about the last minute."""

    def __init__(self) -> None:
        self._slots: deque[tuple[int, float]] = deque(maxlen=_LAG_SLOTS)

    def add(self, value: float) -> None:
        slot = self._now()
        if self._slots and self._slots[-1][0] == slot:
            self._slots[-1] = (slot, max(value, self._slots[-1][1]))
        else:
            self._slots.append((slot, value))

    def value(self) -> float:
        oldest = self._now() - _LAG_SLOTS
        return max((value for slot, value in tuple(self._slots) if slot > oldest), default=0.0)

    @staticmethod
    def _now() -> int:
        return int(time.monotonic() / _LAG_SLOT_SECONDS)
