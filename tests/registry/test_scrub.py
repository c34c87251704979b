"""The bucket compared with the database: what is damaged is found, refused, told and repaired."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator

import asyncpg
import pytest

from libs.common.audit import Origin
from libs.common.database import open_pool
from services.registry.scrubbing import Scrubber
from services.registry.settings import RegistrySettings
from tests.backend import Backend
from tests.registry.bundles import bundle
from tests.registry.running import RunningRegistry
from tests.registry.test_gc import until_gone, until_waiting
from tests.registry.test_races import assert_in_agreement

BY_HAND = Origin(actor="somebody")
VERSION = "/job-bundles/hello/versions/1.0.0"


@contextlib.asynccontextmanager
async def scrubber(backend: Backend, *, bytes_per_second: float = 1e12) -> AsyncIterator[Scrubber]:
    store = backend.objects()
    try:
        async with open_pool(backend.database_url, size=4, application_name="stowage-scrub") as pool:
            yield Scrubber(pool, store, grace_seconds=0, bytes_per_second=bytes_per_second)
    finally:
        store.close()


DAMAGES = {
    "missing": (None, "its object is missing from the bucket"),
    "of another length": (b"short", "its object has 5 bytes instead of"),
    "of other bytes": (b"x" * len(bundle()), "its object has other bytes, sha256:"),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damage_is_found_refused_and_repaired_by_publishing(registry: RunningRegistry, damage: str) -> None:
    data, sentence = DAMAGES[damage]
    version = (await registry.publish(bundle())).json
    await registry.publish(bundle(version="2.0.0"), version="2.0.0")
    (key,) = [key for key in registry.keys("artifacts/") if version["digest"].removeprefix("sha256:") in key]
    if data is None:
        registry.objects.delete(key)
    else:
        registry.objects.put(key, data, content_type="application/gzip")
    async with scrubber(registry.backend) as scrubbing:
        report = await scrubbing.scrub(BY_HAND, repair=True)
        assert (report.totals.artifacts, report.totals.quarantined, report.clean) == (2, 1, False)
        (found,) = report.damaged
        assert (found.digest, found.versions, found.equal_digest) == (version["digest"], ["hello@1.0.0"], None)
        assert sentence in found.damage
        again = await scrubbing.scrub(BY_HAND, repair=False)
        assert (again.totals.quarantined, again.clean) == (0, False)
        for path in (
            "/job-bundles/hello/resolve?reference=1.0.0", f"{VERSION}/download", f"{VERSION}/download?stream=true",
            f"/artifacts/{version['digest']}",
        ):  # fmt: skip
            answer = await registry.request("GET", path)
            assert (answer.status, answer.json["type"]) == (409, "urn:stowage:problem:artifact-quarantined")
            assert sentence in answer.json["detail"]
            assert "Publish the same content again" in answer.json["detail"]
        assert (await registry.request("GET", "/job-bundles/hello/resolve?reference=2.0.0")).status == 200
        assert (await registry.publish(bundle())).json == version  # without force: nothing is replaced
        assert (await registry.request("GET", f"{VERSION}/download?stream=true")).body == bundle()
        assert (await scrubbing.scrub(BY_HAND, repair=False)).clean
    assert [action for action in await registry.actions() if not action.startswith("version")] == [
        "artifact.quarantined", "scrub.finished", "scrub.finished", "artifact.repaired", "scrub.finished",
    ]  # fmt: skip
    await assert_in_agreement(registry)


async def test_object_that_somebody_put_back_is_released(registry: RunningRegistry) -> None:
    version = (await registry.publish(bundle())).json
    (key,) = registry.keys()
    registry.objects.delete(key)
    async with scrubber(registry.backend) as scrubbing:
        await scrubbing.scrub(BY_HAND, repair=False)
        registry.objects.put(key, bundle(), content_type="application/gzip")
        report = await scrubbing.scrub(BY_HAND, repair=False)
    assert (report.totals.repaired, report.clean) == (1, True)
    resolved = await registry.request("GET", "/job-bundles/hello/resolve?reference=latest")
    assert resolved.json["artifact"]["digest"] == version["digest"]


async def test_rebuilding_in_other_bytes_makes_the_content_available_again(registry: RunningRegistry) -> None:
    version = (await registry.publish(bundle())).json
    registry.objects.delete(registry.keys()[0])
    async with scrubber(registry.backend) as scrubbing:
        await scrubbing.scrub(BY_HAND, repair=False)
        refused = await registry.publish(bundle(compression="zstd"))
        assert (refused.status, refused.json["type"]) == (409, "urn:stowage:problem:artifact-lost")
        rebuilt = await registry.publish(bundle(compression="zstd"), force="true", reason="rebuilt")
        assert (rebuilt.json["revision"], rebuilt.json["contentDigest"]) == (2, version["contentDigest"])
        report = await scrubbing.scrub(BY_HAND, repair=False)
    assert report.clean
    assert [(item.digest, item.equal_digest) for item in report.damaged] == [
        (version["digest"], rebuilt.json["digest"])
    ]
    old = await registry.request("GET", f"/job-bundles/hello/resolve?reference={version['digest']}")
    assert old.status == 409
    assert f"The same content is there as {rebuilt.json['digest']}" in old.json["detail"]


async def test_objects_without_a_row_are_counted_and_removed_by_repair(registry: RunningRegistry) -> None:
    await registry.publish(bundle())
    before = registry.keys()
    registry.objects.put(f"artifacts/sha256/00/{'0' * 64}.tgz", b"x" * 7, content_type="application/gzip")
    async with scrubber(registry.backend) as scrubbing:
        found = await scrubbing.scrub(BY_HAND, repair=False)
        assert (found.totals.unnamed, found.totals.unnamed_size, found.totals.removed) == (1, 7, 0)
        assert not found.clean
        removed = await scrubbing.scrub(BY_HAND, repair=True)
        assert (removed.totals.removed, removed.clean) == (1, True)
    assert registry.keys() == before


async def test_scrub_that_was_killed_goes_on_where_it_was(registry: RunningRegistry) -> None:
    versions = [
        (await registry.publish(bundle(version=f"1.0.{number}"), version=f"1.0.{number}")).json for number in range(4)
    ]
    for key in registry.keys("artifacts/"):
        registry.objects.delete(key)
    digests = sorted(version["digest"] for version in versions)
    blocker = await asyncpg.connect(registry.backend.database_url)
    async with blocker.transaction():  # nobody can decide about the third artifact
        await blocker.execute("SELECT pg_advisory_xact_lock(hashtextextended('artifact ' || $1, 0))", digests[2])
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "services.registry", "scrub"),
            env=registry.backend.environment("STOWAGE_REGISTRY_"),
            stdout=asyncio.subprocess.DEVNULL,
        )
        await until_waiting(registry.backend)
        process.send_signal(signal.SIGKILL)
        await process.wait()
    await blocker.close()
    await until_gone(registry.backend)
    assert await registry.actions() == ["version.published"] * 4 + ["artifact.quarantined"] * 2
    async with scrubber(registry.backend) as scrubbing:
        report = await scrubbing.scrub(BY_HAND, repair=True)
    assert (report.totals.artifacts, report.totals.quarantined) == (4, 4)
    subjects = [event["digest"] for event in await registry.audit() if event["action"] == "artifact.quarantined"]
    assert subjects == digests  # each once, in order
    assert {item.digest for item in report.damaged} == set(digests)


async def test_schedule_scrubs_when_the_interval_is_over(registry: RunningRegistry) -> None:
    await registry.publish(bundle())
    async with scrubber(registry.backend) as scrubbing:
        for _ in range(2):
            await scrubbing.scrub_if_due(BY_HAND, interval_seconds=3600)
        assert (await registry.actions()).count("scrub.finished") == 1
        await scrubbing.scrub_if_due(BY_HAND, interval_seconds=0)
        assert (await registry.actions()).count("scrub.finished") == 2


async def test_command_ends_with_one_while_something_is_damaged(registry: RunningRegistry) -> None:
    await registry.publish(bundle())
    registry.objects.delete(registry.keys()[0])
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "services.registry", "scrub", "--bytes-per-second", "1000000"),
        env=registry.backend.environment("STOWAGE_REGISTRY_"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 1
    assert "hello@1.0.0" in out.decode()
    assert "publish or rebuild the same content" in out.decode()
    assert "artifacts read             1" in out.decode()


def test_scrubs_are_regular_only_where_that_is_set(backend: Backend) -> None:
    assert RegistrySettings(**backend.settings).scrub_interval_seconds is None  # type: ignore[arg-type]
