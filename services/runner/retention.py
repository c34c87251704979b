"""How long things are kept for the sake of runs: their logs and outputs here, their artifacts at the registry."""

from collections.abc import AsyncIterator

from libs.common.audit import Origin
from libs.common.client import RegistryClient
from libs.common.database import Pool
from libs.common.log import get_logger
from libs.common.objects import ObjectStore, run_log_prefix, run_outputs_prefix
from libs.common.retention import Belongings, Expiry, regularly
from services.runner import retention_store

_TOLD_AT_ONCE = 1000
_log = get_logger("runner")


def expiry_of_runs(pool: Pool, objects: ObjectStore, days: float) -> Expiry:
    """Removes log and outputs of runs that ended more than `days` ago, unless somebody needs them as inputs."""

    async def belongings() -> AsyncIterator[Belongings]:
        after = ""
        while True:
            async with pool.acquire() as connection:
                needed = await retention_store.needed_runs(connection)
                page = await retention_store.list_expirable(connection, days, after=after, needed=needed)
            for after in page:
                yield Belongings(after, (run_log_prefix(after), run_outputs_prefix(after)))
            if not page:
                return

    async def forget(run_id: str) -> None:
        async with pool.acquire() as connection:
            await retention_store.set_expired(connection, run_id)

    return Expiry(pool, objects, owners="runs", days=days, belongings=belongings, forget=forget)


async def tell_uses(pool: Pool, registry: RegistryClient) -> None:
    """Tell the registry which artifacts runs need that have not ended, so that it keeps them."""
    async with pool.acquire() as connection:
        digests = await retention_store.artifacts_in_use(connection)
    for start in range(0, len(digests), _TOLD_AT_ONCE):
        unavailable = await registry.note_uses(digests[start : start + _TOLD_AT_ONCE])
        if unavailable:
            _log.warning("artifacts_of_open_runs_unavailable", digests=unavailable)


async def keep_regularly(pool: Pool, objects: ObjectStore, registry: RegistryClient, days: float | None) -> None:
    """Tell uses, and expire runs where `days` are given, regularly for as long as the task runs."""

    async def keep() -> None:
        await tell_uses(pool, registry)
        if days is not None:
            await expiry_of_runs(pool, objects, days).expire(Origin(actor="runner"))

    await regularly(keep)
