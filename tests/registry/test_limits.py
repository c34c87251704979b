"""What one token may ask and upload, and what a flood of unknown ones costs."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from pydantic import ValidationError

from libs.common.archive import ArchiveLimits
from libs.common.rate import Bucket
from services.registry.settings import RegistrySettings
from tests.backend import Backend
from tests.metrics import Reading
from tests.registry.bundles import bundle, manifest
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
        data = bundle("slow")

        async def slowly() -> AsyncIterator[bytes]:
            yield data[:10]
            await go_on.wait()
            yield data[10:]

        slow = asyncio.create_task(registry.publish(slowly(), "slow", token=token))
        await registry.settled(requests=1)
        _assert_refused(await registry.publish(bundle(), token=token), "too-many-uploads", "TOKEN_UPLOADS", 1)
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


_MANIFEST_BYTES = len(json.dumps(manifest()))
_ZEROS = bytes(17 * 1024 * 1024)
_COSTS: dict[str, tuple[str, int, bytes, bytes, int]] = {
    # the setting, its value, what just passes, what does not, and the status
    "compressed": ("max_artifact_bytes", len(bundle()), bundle(), bundle(files={"x": "y"}), 413),
    "unpacked": ("max_unpacked_bytes", 10_240, bundle(), bundle(files={"x": "y" * 10_000}), 413),
    "entries": ("max_entries", 3, bundle(files={"a": ""}), bundle(files={"a": "", "b": ""}), 413),
    "implied directories": ("max_entries", 4, bundle(files={"d/a": ""}), bundle(files={"d/e/a": ""}), 413),
    "ratio": ("max_compression_ratio", 100, bundle(files={"x": _ZEROS}, level=0), bundle(files={"x": _ZEROS}), 422),
    "path": ("max_path_bytes", 20, bundle(files={"p" * 20: ""}), bundle(files={"p" * 21: ""}), 422),
    "depth": ("max_path_depth", 3, bundle(files={"a/b/c": ""}), bundle(files={"a/b/c/d": ""}), 422),
    "all paths": ("max_total_path_bytes", 25, bundle(files={"abcde": ""}), bundle(files={"abcdef": ""}), 413),
    "manifest": ("max_manifest_bytes", _MANIFEST_BYTES, bundle(), bundle(description=""), 422),
}


@pytest.mark.parametrize("name", _COSTS)
async def test_tarball_at_the_limit_is_taken_and_one_beyond_is_told_which_setting_it_exceeds(
    backend: Backend, name: str
) -> None:
    setting, limit, passes, exceeds, status = _COSTS[name]
    async with running_registry(backend, **{setting: limit}) as registry:

        async def streamed() -> AsyncIterator[bytes]:
            yield exceeds

        for body in (exceeds, streamed()):
            refused = await registry.publish(body)
            assert (refused.status, refused.json["setting"]) == (status, f"STOWAGE_REGISTRY_{setting.upper()}")
            assert f"STOWAGE_REGISTRY_{setting.upper()}" in refused.json["detail"]
            assert str(limit) in refused.json["detail"]
        taken = await registry.publish(passes)
        assert taken.status == 201, taken.body


async def test_older_body_beyond_its_limit_is_told_which_setting_it_exceeds(backend: Backend) -> None:
    async with running_registry(backend, max_json_publish_bytes=1000) as registry:
        headers = {"Content-Type": "application/json"}
        refused = await registry.request("POST", "/job-bundles", data=b" " * 1001, headers=headers)
        assert (refused.status, refused.json["setting"]) == (413, "STOWAGE_REGISTRY_MAX_JSON_PUBLISH_BYTES")
        assert "1000" in refused.json["detail"]
        assert (await registry.request("POST", "/job-bundles", data=b" " * 1000, headers=headers)).status == 400


@pytest.mark.parametrize(
    ("setting", "field"),
    [
        ("max_compression_ratio", "max_ratio"),
        *((name, name) for name in ("max_path_bytes", "max_path_depth", "max_total_path_bytes")),
    ],
)
def test_registry_takes_nothing_that_runners_do_not_unpack(setting: str, field: str) -> None:
    needed = dict.fromkeys(("database_url", "s3_endpoint", "s3_access_key", "s3_secret_key"), "none")
    with pytest.raises(ValidationError, match=setting):
        RegistrySettings.model_validate({**needed, setting: getattr(ArchiveLimits(), field) + 1})
