"""The queue of runs: pgqueuer's tables in the schema `runner`, beside the rows they point to.

A run that has not ended has one entry, which is found by the run's id: it is pgqueuer's dedupe key.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver
from pgqueuer.adapters.persistence.qb import (
    DBSettings,
    QueryBuilderEnvironment,
    QueryQueueBuilder,
    QuerySchedulerBuilder,
)
from pgqueuer.domain.models import Job, TracebackRecord
from pgqueuer.domain.types import JOB_STATUS, JobId, QueueEntrypoint, QueueManagerId
from pgqueuer.ports.driver import Driver
from pgqueuer.ports.repository import EntrypointExecutionParameter
from pgqueuer.queries import Queries

from libs.common.database import Connection

QUEUE_SETTINGS = DBSettings(db_schema="runner", prefix="queue_", channel="runner_queue")

RUN_ENTRYPOINT = "run"
"""What pgqueuer calls the kind of entry whose payload is the id of a run."""

_WAITING_ENTRYPOINT = "waiting"
"""The kind of such an entry while it is not the run's turn: no worker asks for it, and it keeps its place."""

_ENTRIES = QUEUE_SETTINGS.qualified.queue_table

# pgqueuer's trigger wakes workers at INSERT and DELETE, but not at UPDATE.
_WAKE = f"""
    pg_notify(
        '{QUEUE_SETTINGS.channel}',
        json_build_object('channel', '{QUEUE_SETTINGS.channel}', 'operation', 'update', 'sent_at', now(),
                          'table', '{QUEUE_SETTINGS.queue_table}', 'type', 'table_changed_event')::text
    )
"""

_REQUEUE = f"""
    WITH requeued AS (
        UPDATE {_ENTRIES}
        SET status = 'queued', execute_after = now() + $3::interval, attempts = attempts + 1, updated = now(),
            queue_manager_id = NULL
        WHERE id = $1 AND queue_manager_id = $2 AND status = 'picked'
        RETURNING id
    )
    SELECT {_WAKE} FROM requeued
"""  # noqa: S608  # constants

_KEEP = f"UPDATE {_ENTRIES} SET heartbeat = now() WHERE id = ANY($1::bigint[]) AND queue_manager_id = $2"  # noqa: S608

_GIVE_WAY = f"""
    WITH given AS (
        UPDATE {_ENTRIES} SET entrypoint = '{RUN_ENTRYPOINT}', updated = now()
        WHERE dedupe_key = $1 AND status IN ('queued', 'picked') AND entrypoint = '{_WAITING_ENTRYPOINT}'
        RETURNING id
    )
    SELECT {_WAKE} FROM given
"""  # noqa: S608  # constants

_REMOVE = f"DELETE FROM {_ENTRIES} WHERE dedupe_key = $1 AND status IN ('queued', 'picked')"  # noqa: S608


_PRUNE = f"DELETE FROM {QUEUE_SETTINGS.qualified.queue_table_log}"  # noqa: S608


@dataclass
class HeldEntries(Queries):
    """pgqueuer for one runner, which touches an entry only for as long as it holds it.

    pgqueuer's own statements name the entry alone: a runner that was paused for longer than its lease would delete,
    queue again or keep alive what another runner has taken over meanwhile.

    `before_look` is called before each look for entries.
    """

    before_look: Callable[[], None] = field(default=lambda: None)
    _holder: QueueManagerId | None = field(init=False, default=None)

    async def dequeue(
        self,
        batch_size: int,
        entrypoints: dict[QueueEntrypoint, EntrypointExecutionParameter],
        queue_manager_id: QueueManagerId,
        global_concurrency_limit: int | None,
        heartbeat_timeout: timedelta,
    ) -> list[Job]:
        """Take entries that are queued, or whose holder is silent for longer than `heartbeat_timeout`."""
        self._holder = queue_manager_id
        self.before_look()
        return await super().dequeue(
            batch_size, entrypoints, queue_manager_id, global_concurrency_limit, heartbeat_timeout
        )

    async def log_jobs(self, job_status: list[tuple[Job, JOB_STATUS, TracebackRecord | None]]) -> None:
        """Leave the entries be: `remove_entry` takes them away in the transaction that ends their run.

        One that is still there has a run that has not ended, and is leased again when its heartbeat stops.
        """

    async def retry_job(self, job: Job, delay: timedelta, traceback_record: TracebackRecord | None) -> None:
        """Queue an entry again, to be taken after `delay`."""
        await self.driver.fetch(_REQUEUE, job.id, job.queue_manager_id, delay)

    async def update_heartbeat(self, job_ids: list[JobId]) -> None:
        """Keep entries."""
        await self.driver.execute(_KEEP, list(set(job_ids)), self._holder)


_Queries = TypeVar("_Queries", bound=Queries)


def queue_queries(connection: Connection) -> Queries:
    """pgqueuer on one connection that leaves JSON as text."""
    return _queries(Queries, AsyncpgDriver(connection))  # type: ignore[arg-type]  # a pool's proxy serves as well


def held_entries(driver: Driver, *, before_look: Callable[[], None] = lambda: None) -> HeldEntries:
    """The queue as one runner serves it."""
    entries = _queries(HeldEntries, driver)
    entries.before_look = before_look
    return entries


async def prune_queue_log(connection: Connection) -> None:
    """Delete what pgqueuer writes down of each entry: the audit trail and the runs themselves say more."""
    await connection.execute(_PRUNE)


async def enqueue_run(connection: Connection, run_id: str, *, priority: int, waits: bool) -> None:
    """Queue a run on a connection of `open_pool`: its entry is there when the transaction commits.

    Higher priorities come first. A run that `waits` for its turn comes up only after `give_way`.
    """
    await _queries(Queries, _ValueDriver(connection)).enqueue(  # type: ignore[arg-type]
        _WAITING_ENTRYPOINT if waits else RUN_ENTRYPOINT, run_id.encode(), priority, dedupe_key=run_id
    )


async def give_way(connection: Connection, run_id: str) -> None:
    """Let a run come up that waited for its turn, in the place that it had."""
    await connection.execute(_GIVE_WAY, run_id)


async def remove_entry(connection: Connection, run_id: str) -> None:
    """Take a run out of the queue, in the transaction that ends it."""
    await connection.execute(_REMOVE, run_id)


def _queries(kind: type[_Queries], driver: Driver) -> _Queries:
    return kind(
        driver,
        qbe=QueryBuilderEnvironment(QUEUE_SETTINGS),
        qbq=QueryQueueBuilder(QUEUE_SETTINGS),
        qbs=QuerySchedulerBuilder(QUEUE_SETTINGS),
    )


class _ValueDriver(AsyncpgDriver):
    """pgqueuer hands the headers of new entries over as JSON text; our pools encode values themselves."""

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        *values, headers = args
        if not isinstance(headers, list):
            raise TypeError("the last argument of pgqueuer's INSERT is expected to be the headers")
        return await super().fetch(query, *values, [json.loads(header) for header in headers])
