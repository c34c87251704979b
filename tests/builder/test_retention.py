"""Logs of builds that were kept long enough."""

import pytest

from libs.common.client import ServiceError
from libs.common.database import open_pool
from libs.common.models import Build
from services.builder.retention import expiry_of_builds
from tests.builder.conftest import Shop, import_now, require_success


async def test_log_goes_when_it_was_kept_long_enough_and_the_build_stays(shop: Shop) -> None:
    shop.example.python("notes")
    async with shop.builder() as builder:
        old, young = [require_success(await import_now(builder, shop.example)).builds[0].id for _ in range(2)]
        await shop.backend.fetch(
            "UPDATE builder.builds SET finished_at = finished_at - interval '31 days' WHERE id = $1", old
        )
        objects = shop.backend.objects()
        async with open_pool(shop.backend.database_url, size=2, application_name="test") as pool:
            expiry = expiry_of_builds(pool, objects, 30)
            assert "would be removed" in await expiry.by_hand(dry_run=True)
            assert await shop.log(old)
            await expiry.by_hand(dry_run=False)
        objects.close()
        assert shop.backend.keys("logs/builds/") == [f"logs/builds/{young}.log"]
        assert [line async for line in builder.client.lines(f"/builds/{young}/log")]
        with pytest.raises(ServiceError) as gone:
            await builder.client.get(f"/builds/{old}/log", Build)
        assert (gone.value.status, gone.value.kind) == (410, "expired")
        assert (await builder.client.get(f"/builds/{old}", Build)).log_expired_at is not None
