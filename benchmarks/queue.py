"""What 10,000 queued runs change, and what bookkeeping costs a run: `python -m benchmarks.queue`.

Two databases of one server: in one nothing is queued, in the other 10,000 runs are, and each of those also has 10,000
runs that have ended. In turn, one more run is accepted in each, as `POST /runs` does it (the registry is asked over
HTTP), and one is leased, by the statement of the queue and the transaction of the run. Then runs go through all of the
bookkeeping, from the lease to the end, without a job: what is counted are statements that wait for an answer, and CPU
time of this process.
"""

import argparse
import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import structlog
from pgqueuer.domain.models import Job
from pgqueuer.domain.types import QueueEntrypoint, QueueManagerId
from pgqueuer.ports.repository import EntrypointExecutionParameter

from benchmarks.report import compare, machine, percentile
from libs.common.audit import Origin
from libs.common.auth import Principal, parse_scopes
from libs.common.database import Notifications, Pool, open_pool
from libs.common.journal import Journal
from libs.common.models import RunRequest, RunState
from libs.common.objects import ObjectStore
from libs.common.queue import RUN_ENTRYPOINT, HeldEntries, held_entries
from services.runner.acceptance import Acceptance
from services.runner.lifecycle import Leased, Lifecycle
from services.runner.logs import RunLogs
from services.runner.queue_driver import ReconnectingDriver
from services.runner.standing import Standing
from services.runner.store import JOURNAL_GUARD, Ending, Timings
from services.runner.turns import Backlog, Turns
from tests.backend import Backend, fresh_backend, running_servers
from tests.registry.running import RunningRegistry, running_registry
from tests.runner.bundles import node, publish
from tests.servers import Servers

_REQUEST = RunRequest(bundle="hello@latest")
_ORIGIN = Origin("benchmark", "req_benchmark")
_PRINCIPAL = Principal(_ORIGIN.actor, parse_scopes(["runs:write"]), "benchmark")
_MANAGER = QueueManagerId(UUID(int=1))
_ENTRYPOINTS = {QueueEntrypoint(RUN_ENTRYPOINT): EntrypointExecutionParameter(0)}
_LEASE = timedelta(seconds=3600)

# Copies of one accepted run, with their entries: as `POST /runs` leaves them, or ended.
_FILL = """
    INSERT INTO runner.runs (id, slug, version, revision, digest, artifact, parameters, inputs, limits, retry,
                             max_attempts, created_by, state, finished_at)
    SELECT 'run_00' || $2 || lpad(n::text, 8, '0'), slug, version, revision, digest, artifact, parameters, inputs,
           limits, retry, max_attempts, created_by, $2::text::runner.run_state, CASE WHEN $2 <> 'queued' THEN now() END
    FROM runner.runs, generate_series(1, $1) AS n
    WHERE id = $3
"""
_FILL_QUEUE = """
    INSERT INTO runner.queue_pgqueuer (priority, status, entrypoint, dedupe_key, payload, headers)
    SELECT 0, 'queued', 'run', id, convert_to(id, 'UTF8'), '{}' FROM runner.runs
    WHERE state = 'queued' AND id LIKE 'run_00%' ORDER BY id
"""


@dataclass
class Side:
    """One database, and all that works on it."""

    backend: Backend
    pool: Pool
    objects: ObjectStore
    queue: HeldEntries
    acceptance: Acceptance
    lifecycle: Lifecycle
    journal: Journal
    logs: RunLogs
    statements: list[str] = field(default_factory=list)

    async def accept(self) -> float:
        """The seconds that it takes to accept a run."""
        begun = time.perf_counter()
        await self.acceptance.accept(_REQUEST, _PRINCIPAL, _ORIGIN)
        return time.perf_counter() - begun

    async def take(self) -> Leased:
        """Lease the next run."""
        (job,) = await self._dequeue()
        leased = await self.lifecycle.lease((job.payload or b"").decode(), uuid4())
        if not isinstance(leased, Leased):
            raise TypeError(leased)
        return leased

    async def lease(self) -> float:
        """The seconds that it takes to lease a run, which is then ended."""
        begun = time.perf_counter()
        leased = await self.take()
        elapsed = time.perf_counter() - begun
        await self.finish(leased, None)
        return elapsed

    async def finish(self, leased: Leased, log_key: str | None) -> None:
        """End a run."""
        ending = Ending(RunState.SUCCEEDED, {"rows": 1}, None, Timings(), log_key)
        if not await self.lifecycle.finish(leased.assignment, ending, []):
            raise RuntimeError("the lease was lost")

    async def see_through(self) -> None:
        """All of the bookkeeping of a run that does nothing."""
        leased = await self.take()
        run = leased.assignment
        async with self.journal.writing(run.id, holder=run.lease, new_at=run.leased_at) as log:
            log.write("system", "attempt 1 of 3")
            log.write("system", "succeeded")
        await self.finish(leased, await self.logs.archive(run.id, run.lease))

    async def _dequeue(self) -> list[Job]:
        return await self.queue.dequeue(1, _ENTRYPOINTS, _MANAGER, 2, _LEASE)


@contextlib.asynccontextmanager
async def _side(backend: Backend, registry: RunningRegistry, *, queued: int, ended: int) -> AsyncIterator[Side]:
    driver = ReconnectingDriver(backend.database_url, application_name="benchmark-queue")
    objects = backend.objects()
    async with open_pool(backend.database_url, size=4, application_name="benchmark") as pool:
        turns = Turns(pool)
        backlog = Backlog(pool, max_queued_runs=100_000)
        standing = Standing(registry.client, seconds=5)
        acceptance = Acceptance(pool, registry.client, standing, turns, backlog, max_parameters_bytes=10_000)
        journal = Journal(pool, "runner", Notifications(backend.database_url, "runner_journal"), guard=JOURNAL_GUARD)
        lifecycle = Lifecycle(
            pool, journal, turns, lambda _state: None, runner="benchmark", max_parameters_bytes=10_000
        )
        logs = RunLogs(pool, journal, objects)
        side = Side(backend, pool, objects, held_entries(driver), acceptance, lifecycle, journal, logs)
        first = await acceptance.accept(_REQUEST, _PRINCIPAL, _ORIGIN)
        async with pool.acquire() as connection:
            await connection.execute(_FILL, ended, "succeeded", first.id)
            await connection.execute(_FILL, queued, "queued", first.id)
            await connection.execute(_FILL_QUEUE)
            await connection.execute("ANALYZE")
        await side.lease()
        try:
            yield side
        finally:
            await driver.close()
            objects.close()


async def _compare_lengths(empty: Side, full: Side, rounds: int, queued: int) -> None:
    accept: dict[str, list[float]] = {"empty": [], "full": []}
    lease: dict[str, list[float]] = {"empty": [], "full": []}
    for number in range(rounds + 10):
        for name, side in (("empty", empty), ("full", full)):
            accepted, leased = await side.accept(), await side.lease()
            if number >= 10:  # the first rounds only warm up
                accept[name].append(accepted)
                lease[name].append(leased)
    against = "empty queue"
    compare(f"accept one more of {queued}", accept["full"], accept["empty"], against=against, target="at most 1.5")
    compare(f"lease one of {queued}", lease["full"], lease["empty"], against=against, target="at most 1.5")


async def _cost(side: Side, runs: int) -> None:
    """CPU and statements per run, from the acceptance and from the lease on."""
    statements = 0

    def count(_record: Any) -> None:
        nonlocal statements
        statements += 1

    connections = [await side.pool.acquire() for _ in range(side.pool.get_max_size())]
    for connection in connections:
        connection.add_query_logger(count)
    for connection in connections:
        await side.pool.release(connection)
    for name, action in (("accept", side.accept), ("lease, log, archive, finish", side.see_through)):
        statements, cpu, begun = 0, time.process_time(), time.perf_counter()
        times = []
        for _ in range(runs):
            started = time.perf_counter()
            await action()
            times.append(time.perf_counter() - started)
        cpu, elapsed = time.process_time() - cpu, time.perf_counter() - begun
        print(
            f"{name:44} p50 {percentile(times, 0.5) * 1000:8.1f} p95 {percentile(times, 0.95) * 1000:8.1f} ms   "
            f"CPU {cpu / runs * 1000:.1f} ms, {statements / runs:.1f} statements a run, {runs / elapsed:.0f} runs/s"
        )


async def _measure(servers: Servers, rounds: int, queued: int) -> None:
    async with fresh_backend(servers) as one, fresh_backend(servers) as other, running_registry(one) as registry:
        await publish(registry, node("export const handler = () => 1"))
        async with (
            _side(one, registry, queued=0, ended=queued) as empty,
            _side(other, registry, queued=queued, ended=queued) as full,
        ):
            await _compare_lengths(empty, full, rounds, queued)
            await _cost(empty, rounds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--queued", type=int, default=10_000)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    print(machine())
    with running_servers() as servers:
        asyncio.run(_measure(servers, options.rounds, options.queued))


if __name__ == "__main__":
    main()
