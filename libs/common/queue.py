"""The queue of runs: pgqueuer's tables in the schema `runner`, beside the rows they point to."""

from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver
from pgqueuer.adapters.persistence.qb import (
    DBSettings,
    QueryBuilderEnvironment,
    QueryQueueBuilder,
    QuerySchedulerBuilder,
)
from pgqueuer.queries import Queries

from libs.common.database import Connection

QUEUE_SETTINGS = DBSettings(db_schema="runner", prefix="queue_", channel="runner_queue")


def queue_queries(connection: Connection) -> Queries:
    """pgqueuer on one connection: what it enqueues inside a transaction is there when that commits."""
    return Queries(
        AsyncpgDriver(connection),  # type: ignore[arg-type]  # a pool's proxy serves as well
        qbe=QueryBuilderEnvironment(QUEUE_SETTINGS),
        qbq=QueryQueueBuilder(QUEUE_SETTINGS),
        qbs=QuerySchedulerBuilder(QUEUE_SETTINGS),
    )
