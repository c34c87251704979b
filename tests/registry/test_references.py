"""Publishing what the registry has already: by digest, or in other bytes with the same content."""

import asyncio
import hashlib

import pytest

from libs.common.database import open_pool
from services.registry.store import artifacts
from services.registry.store.collection import Retention
from tests.registry.bundles import bundle
from tests.registry.running import Answer, RunningRegistry
from tests.registry.test_gc import collect
from tests.registry.test_races import assert_in_agreement

VERSION = "/job-bundles/hello/versions/1.0.0"
OTHER = bundle(files={"other": "content"})


async def refer(
    registry: RunningRegistry, digest: str, path: str = VERSION, *, token: str = "", **query: str
) -> Answer:
    return await registry.request("PUT", path, token=token, params={"digest": digest, **query})


async def publish(registry: RunningRegistry, *bodies: bytes) -> list[str]:
    return [(await registry.publish(body, force="true", reason="next")).json["digest"] for body in bodies]


async def test_head_says_whether_an_artifact_need_not_be_sent(registry: RunningRegistry) -> None:
    (digest,) = await publish(registry, bundle())
    found = await registry.request("HEAD", f"/artifacts/{digest}")
    assert (found.status, found.body) == (200, b"")
    assert (await registry.request("HEAD", f"/artifacts/sha256:{'0' * 64}")).status == 404
    publisher = await registry.token_for("publisher", "bundles:publish")
    assert (await registry.request("HEAD", f"/artifacts/{digest}", token=publisher)).status == 403
    await publish(registry, OTHER)
    await collect(registry, Retention(1, 1, 0))
    assert (await registry.request("HEAD", f"/artifacts/{digest}")).status == 410


async def test_reference_to_what_is_current_changes_nothing(registry: RunningRegistry) -> None:
    first = await registry.publish(bundle())
    again = await refer(registry, first.json["digest"])
    assert (again.status, again.json) == (200, first.json)
    assert await registry.actions() == ["version.published"]


async def test_reference_is_judged_like_an_upload(registry: RunningRegistry) -> None:
    first, second = await publish(registry, bundle(), OTHER)
    conflict = await refer(registry, first)
    assert (conflict.status, conflict.json["type"]) == (409, "urn:stowage:problem:version-exists")
    assert conflict.json["difference"]["removedPaths"] == ["other"]
    assert (await refer(registry, first, force="true")).json["type"] == "urn:stowage:problem:reason-required"
    stale = await refer(registry, first, force="true", reason="back", expectedDigest=first)
    assert stale.status == 412
    publisher = await registry.token_for("publisher", "bundles:publish", "bundles:read")
    assert (await refer(registry, first, token=publisher, force="true", reason="back")).status == 403
    back = await refer(registry, first, force="true", reason="back", expectedDigest=second)
    assert (back.status, back.json["revision"], back.json["digest"]) == (200, 3, first)
    assert (await registry.actions())[-1] == "version.replaced"
    await assert_in_agreement(registry)


async def test_reference_needs_the_right_to_read(registry: RunningRegistry) -> None:
    (digest,) = await publish(registry, bundle())
    publisher = await registry.token_for("publisher", "bundles:publish")
    for named in (digest, f"sha256:{'0' * 64}"):  # and does not tell whether there is such an artifact
        answer = await refer(registry, named, token=publisher)
        assert (answer.status, answer.json["requiredScope"]) == (403, "bundles:read")


async def test_token_for_some_slugs_refers_to_these_alone(registry: RunningRegistry) -> None:
    (digest,) = await publish(registry, bundle())
    (stranger,) = [(await registry.publish(bundle("other"), "other")).json["digest"]]
    narrow = await registry.token_for("narrow", "bundles:publish", "bundles:read:hello")
    assert (await refer(registry, digest, token=narrow)).status == 200
    assert (await refer(registry, stranger, "/job-bundles/other/versions/1.0.0", token=narrow)).status == 403
    assert (await refer(registry, stranger, token=narrow)).json["type"] == "urn:stowage:problem:artifact-not-found"
    uses = await registry.request("POST", "/artifacts/uses", token=narrow, json={"digests": [digest, stranger]})
    assert uses.json == {"unavailable": [stranger]}


@pytest.mark.parametrize("path", ["/job-bundles/hello/versions/2.0.0", "/job-bundles/other/versions/1.0.0"])
async def test_artifact_is_of_the_version_that_its_manifest_names(registry: RunningRegistry, path: str) -> None:
    """So equal content in two versions or bundles can't be: what names them is part of the content."""
    (digest,) = await publish(registry, bundle())
    answer = await refer(registry, digest, path)
    assert (answer.status, answer.json["type"]) == (422, "urn:stowage:problem:manifest-mismatch")


async def test_reference_to_nothing_is_refused(registry: RunningRegistry) -> None:
    (digest,) = await publish(registry, bundle())
    unknown = await refer(registry, f"sha256:{'0' * 64}")
    assert (unknown.status, unknown.json["type"]) == (404, "urn:stowage:problem:artifact-not-found")
    assert (await refer(registry, "sha256:nonsense")).status == 400
    registry.objects.delete(registry.keys()[0])
    lost = await refer(registry, digest)
    assert (lost.status, lost.json["type"]) == (409, "urn:stowage:problem:artifact-lost")
    assert await registry.actions() == ["version.published"]


async def test_content_that_is_stored_is_not_stored_in_other_bytes_as_well(registry: RunningRegistry) -> None:
    first, _ = await publish(registry, bundle(), OTHER)
    again = await registry.publish(bundle(compression="zstd", level=3), force="true", reason="rebuilt elsewhere")
    assert (again.status, again.json["revision"], again.json["digest"]) == (200, 3, first)
    assert len(registry.keys()) == 2
    await assert_in_agreement(registry)


async def test_content_whose_bytes_were_lost_is_stored_anew(registry: RunningRegistry) -> None:
    first, _ = await publish(registry, bundle(), OTHER)
    (key,) = [key for key in registry.keys("artifacts/") if first.removeprefix("sha256:") in key]
    registry.objects.delete(key)
    other_bytes = bundle(compression="zstd", level=3)
    again = await registry.publish(other_bytes, force="true", reason="rebuilt elsewhere")
    assert again.json["digest"] == f"sha256:{hashlib.sha256(other_bytes).hexdigest()}"
    assert (await registry.request("GET", f"{VERSION}/download?stream=true")).body == other_bytes


async def test_content_whose_bytes_are_being_collected_is_stored_anew(registry: RunningRegistry) -> None:
    first, _ = await publish(registry, bundle(), OTHER)
    async with (
        open_pool(registry.backend.database_url, size=2, application_name="test") as pool,
        pool.acquire() as connection,
    ):
        async with artifacts.locked(connection, first):
            publishing = asyncio.create_task(
                registry.publish(bundle(compression="zstd"), force="true", reason="rebuilt")
            )
            async with asyncio.timeout(20):
                waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
                while not await registry.backend.fetch(waiting):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            await connection.execute("UPDATE registry.artifacts SET gc_claimed_at = now() WHERE digest = $1", first)
        answer = await publishing
    assert (answer.status, answer.json["revision"]) == (200, 3)
    assert answer.json["digest"] != first
