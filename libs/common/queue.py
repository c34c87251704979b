"""The queue of runs: pgqueuer's tables in the schema `runner`, beside the rows they point to."""

import json
from collections.abc import Sequence

from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver
from pgqueuer.adapters.persistence.qb import (
    DBSettings,
    QueryBuilderEnvironment,
    QueryQueueBuilder,
    QuerySchedulerBuilder,
)
from pgqueuer.ports.driver import Driver
from pgqueuer.queries import Queries

from libs.common.database import Connection

QUEUE_SETTINGS = DBSettings(db_schema="runner", prefix="queue_", channel="runner_queue")

RUN_ENTRYPOINT = "run"
"""What pgqueuer calls the kind of entry whose payload is the id of a run."""


def queue_queries(connection: Connection) -> Queries:
    """pgqueuer on one connection that leaves JSON as text."""
    return queue_queries_on(AsyncpgDriver(connection))  # type: ignore[arg-type]  # a pool's proxy serves as well


def queue_queries_on(driver: Driver) -> Queries:
    """pgqueuer on a driver of the caller's."""
    return Queries(
        driver,
        qbe=QueryBuilderEnvironment(QUEUE_SETTINGS),
        qbq=QueryQueueBuilder(QUEUE_SETTINGS),
        qbs=QuerySchedulerBuilder(QUEUE_SETTINGS),
    )


async def enqueue_runs(connection: Connection, run_ids: Sequence[str]) -> None:
    """Queue runs on a connection of `open_pool`: they are there when its transaction commits."""
    count = len(run_ids)
    if count:
        await queue_queries_on(_ValueDriver(connection)).enqueue(  # type: ignore[arg-type]
            [RUN_ENTRYPOINT] * count, [run_id.encode() for run_id in run_ids], [0] * count
        )


class _ValueDriver(AsyncpgDriver):
    """pgqueuer hands the headers of new entries over as JSON text; our pools encode values themselves."""

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        *values, headers = args
        if not isinstance(headers, list):
            raise TypeError("the last argument of pgqueuer's INSERT is expected to be the headers")
        return await super().fetch(query, *values, [json.loads(header) for header in headers])
