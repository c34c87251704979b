"""What one token may ask and upload, and what a flood of unknown ones costs."""

import asyncio
from collections.abc import AsyncIterator

from libs.common.rate import Bucket
from tests.backend import Backend
from tests.metrics import Reading
from tests.registry.bundles import bundle
from tests.registry.running import Answer, RunningRegistry, running_registry


def _assert_refused(answer: Answer, kind: str, setting: str, limit: float) -> None:
    assert (answer.status, answer.json["type"]) == (429, f"urn:stowage:problem:{kind}")
    assert (answer.json["limit"], answer.json["setting"]) == (limit, f"STOWAGE_REGISTRY_{setting}")
    assert f"STOWAGE_REGISTRY_{setting}" in answer.json["detail"]
    assert int(answer.headers["Retry-After"]) >= 1


async def _refusals(registry: RunningRegistry, limit: str) -> float:
    text = (await registry.request("GET", "/metrics", token=None)).body.decode()
    return Reading(text).value("stowage_limit_refusals_total", {"limit": limit})


def test_bucket_gives_its_burst_and_then_says_how_long_to_wait() -> None:
    bucket = Bucket(0.5, 3)
    assert [bucket.take() for _ in range(3)] == [0, 0, 0]
    assert 1.5 < bucket.take() <= 2
    bucket.give_back()
    assert bucket.take() == 0


async def test_requests_of_one_token_are_bounded_and_those_of_others_go_on(backend: Backend) -> None:
    limits = {"token_requests_per_second": 0.01, "token_request_burst": 5, "unlimited_subjects": ["builder"]}
    async with running_registry(backend, **limits) as registry:
        busy, other, builder = [await registry.token_for(name, "bundles:read") for name in ("busy", "other", "builder")]
        for token, count in ((busy, 5), (other, 1), (builder, 10)):
            for _ in range(count):
                assert (await registry.request("GET", "/job-bundles", token=token)).status == 200
        refused = await registry.request("GET", "/job-bundles", token=busy)
        _assert_refused(refused, "too-many-requests", "TOKEN_REQUESTS_PER_SECOND", 0.01)
        assert await _refusals(registry, "requests") == 1
        assert (await registry.request("GET", "/livez", token=None)).status == 200


async def test_unknown_tokens_are_not_looked_up_without_end_and_known_ones_go_on(backend: Backend) -> None:
    async with running_registry(backend, unknown_tokens_per_second=0.5, token_cache_seconds=0) as registry:
        known = await registry.token_for("ci", "bundles:read")
        assert (await registry.request("GET", "/job-bundles", token=known)).status == 200
        answers = [await registry.request("GET", "/job-bundles", token=f"stw_{n}") for n in range(8)]
        assert [answer.status for answer in answers[:2]] == [401, 401]
        _assert_refused(answers[-1], "too-many-unknown-tokens", "UNKNOWN_TOKENS_PER_SECOND", 0.5)
        for _ in range(5):
            assert (await registry.request("GET", "/job-bundles", token=known)).status == 200
        assert await _refusals(registry, "unknown-tokens") >= 1


async def test_uploads_at_a_time_are_bounded(backend: Backend) -> None:
    async with running_registry(backend, token_uploads=1) as registry:
        token = await registry.token_for("ci", "bundles:publish")
        go_on = asyncio.Event()
        begun = asyncio.Event()
        data = bundle("slow")

        async def slowly() -> AsyncIterator[bytes]:
            yield data[:10]
            begun.set()
            await go_on.wait()
            yield data[10:]

        slow = asyncio.create_task(registry.publish(slowly(), "slow", token=token))
        await begun.wait()
        async with asyncio.timeout(20):
            while (refused := await registry.publish(bundle(), token=token)).status == 201:
                pass
        _assert_refused(refused, "too-many-uploads", "TOKEN_UPLOADS", 1)
        assert (await registry.publish(bundle("other"), "other")).status == 201
        go_on.set()
        assert (await slow).status == 201
        assert (await registry.publish(bundle("next"), "next", token=token)).status == 201


async def test_bytes_of_an_hour_and_of_a_day_are_bounded(backend: Backend) -> None:
    first, second = bundle("a"), bundle("b", files={"more": "x"})

    async def in_pieces(data: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(data), 50):
            yield data[start : start + 50]

    for setting, kind in (("TOKEN_UPLOAD_BYTES_PER_HOUR", 3600), ("TOKEN_UPLOAD_BYTES_PER_DAY", 86_400)):
        limit = len(first) + len(second) - 1
        async with running_registry(backend, **{setting.lower(): limit}) as registry:
            token = await registry.token_for("ci", "bundles:publish")
            assert (await registry.publish(first, "a", token=token)).status in (200, 201)
            for body in (second, in_pieces(second)):
                refused = await registry.publish(body, "b", token=token)
                _assert_refused(refused, "upload-quota-exceeded", setting, limit)
                assert kind - 60 < int(refused.headers["Retry-After"]) <= kind
            assert (await registry.publish(second, "b")).status in (200, 201)
            assert registry.keys("uploads/") == []
