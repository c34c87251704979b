"""How long logs of builds are kept."""

from collections.abc import AsyncIterator

from libs.common.audit import Origin
from libs.common.database import Pool
from libs.common.objects import ObjectStore, build_log_key
from libs.common.retention import Belongings, Expiry, regularly
from services.builder import store


def expiry_of_builds(pool: Pool, objects: ObjectStore, days: float) -> Expiry:
    """Removes the logs of builds that ended more than `days` ago."""

    async def belongings() -> AsyncIterator[Belongings]:
        after = ""
        while True:
            async with pool.acquire() as connection:
                page = await store.list_expirable_builds(connection, days, after=after)
            for after in page:
                yield Belongings(after, (build_log_key(after),))
            if not page:
                return

    async def forget(build_id: str) -> None:
        async with pool.acquire() as connection:
            await store.expire_log(connection, build_id)

    return Expiry(pool, objects, owners="builds", days=days, belongings=belongings, forget=forget)


async def expire_regularly(pool: Pool, objects: ObjectStore, days: float) -> None:
    """Do so regularly for as long as the task runs."""

    async def expire() -> None:
        await expiry_of_builds(pool, objects, days).expire(Origin(actor="builder"))

    await regularly(expire)
