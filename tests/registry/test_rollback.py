"""Going back: a revision that points at an artifact that the version had, under the rules of replacing."""

from typing import Any

import pytest

from libs.common.client import ServiceError
from libs.common.models import RollbackRequest
from tests.backend import Backend
from tests.registry.bundles import MACHO, bundle
from tests.registry.running import Answer, RunningRegistry, running_registry

VERSION = "/job-bundles/hello/versions/1.0.0"
FIRST, SECOND = bundle(files={"a.txt": "one"}), bundle(files={"b.txt": "two\n"}, compression="zstd")


async def published_twice(registry: RunningRegistry) -> tuple[dict[str, Any], dict[str, Any]]:
    """The version as it was at revision 1, and as it is at revision 2."""
    first = (await registry.publish(FIRST, buildId="bld_1")).json
    second = (await registry.publish(SECOND, force="true", reason="forth", buildId="bld_2")).json
    return first, second


async def roll_back(registry: RunningRegistry, *, token: str = "", **body: Any) -> Answer:
    return await registry.request("POST", f"{VERSION}/rollback", token=token, json={"reason": "it broke", **body})


@pytest.mark.parametrize("by", ["toRevision", "toDigest"])
async def test_version_goes_back_with_a_trace(registry: RunningRegistry, by: str) -> None:
    first, second = await published_twice(registry)
    target = {"toRevision": 1, "toDigest": first["digest"]}[by]
    token = await registry.token_for("operator", "bundles:publish", "bundles:force")
    answer = await roll_back(registry, token=token, expectedDigest=second["digest"], **{by: target})
    assert answer.status == 200
    version = answer.json
    assert (version["revision"], version["digest"], version["manifest"]) == (3, first["digest"], first["manifest"])
    assert (version["replacedBy"], version["reason"]) == ("operator", "it broke")
    assert version["previousDigest"] == second["digest"]
    event = (await registry.audit())[-1]
    assert (event["actor"], event["action"], event["subject"]) == ("operator", "version.rolled_back", "hello@1.0.0")
    assert (event["digest"], event["previous_digest"]) == (first["digest"], second["digest"])
    assert (event["reason"], event["request_id"]) == ("it broke", answer.headers["X-Request-Id"])
    assert event["detail"] == {
        "revision": 3,
        "toRevision": 1,
        "contentDigest": first["contentDigest"],
        "platforms": [],
        "buildId": "bld_1",
        "difference": {
            "added": 1,
            "removed": 1,
            "changed": 0,
            "addedBytes": 3,
            "removedBytes": 4,
            "changedBytes": 0,
            "platformsAdded": [],
            "platformsRemoved": [],
            "addedPaths": ["a.txt"],
            "removedPaths": ["b.txt"],
            "changedPaths": [],
        },
    }
    assert (await registry.request("GET", f"{VERSION}/download?stream=true")).body == FIRST


async def test_revisions_tell_how_each_came_about(registry: RunningRegistry) -> None:
    first, second = await published_twice(registry)
    await registry.client.roll_back("hello", "1.0.0", RollbackRequest(to_revision=1, reason="back"))
    await registry.client.roll_back("hello", "1.0.0", RollbackRequest(to_digest=second["digest"], reason="forth"))
    await registry.client.roll_back("hello", "1.0.0", RollbackRequest(to_digest=first["digest"], reason="back again"))
    revisions = (await registry.request("GET", f"{VERSION}/revisions")).json["items"]
    sides = {1: first, 2: second, 3: first, 4: second, 5: first}
    told = [(5, "rolled_back", 3), (4, "rolled_back", 2), (3, "rolled_back", 1), (2, "replaced", None)]
    assert [(item["revision"], item["origin"], item["rolledBackTo"]) for item in revisions] == [
        *told,
        (1, "published", None),
    ]
    for item in revisions:
        side = sides[item["revision"]]
        for name in ("digest", "contentDigest", "size", "unpackedSize", "fileCount", "platforms"):
            assert item[name] == side[name]
        assert item["buildId"] == ("bld_1" if side is first else "bld_2")
        assert item["publishedBy"] == "admin"
        assert item["previousDigest"] == (sides[item["revision"] - 1]["digest"] if item["revision"] > 1 else None)
    assert [item["reason"] for item in revisions] == ["back again", "forth", "back", "forth", None]
    assert [item["publishedAt"] for item in revisions] == sorted(
        (item["publishedAt"] for item in revisions), reverse=True
    )


async def test_rolled_back_version_resolves_to_the_old_artifact(registry: RunningRegistry) -> None:
    first, second = await published_twice(registry)
    await roll_back(registry, toRevision=1)
    for reference in ("1.0.0", "latest", first["digest"]):
        resolved = await registry.client.resolve("hello", reference)
        assert (resolved.revision, resolved.artifact.digest) == (3, first["digest"])
    replaced = await registry.client.resolve("hello", second["digest"])
    assert (replaced.revision, replaced.artifact.digest) == (2, second["digest"])


async def test_going_back_to_what_is_current_changes_nothing(registry: RunningRegistry) -> None:
    _, second = await published_twice(registry)
    before = await registry.audit()
    for body in ({"toRevision": 2}, {"toDigest": second["digest"]}):
        answer = await roll_back(registry, **body)
        assert (answer.status, answer.json) == (200, second)
    assert await registry.audit() == before


async def test_rollback_without_the_scope_is_forbidden_and_recorded(registry: RunningRegistry) -> None:
    first, second = await published_twice(registry)
    token = await registry.token_for("publisher", "bundles:publish")
    answer = await roll_back(registry, token=token, toRevision=1)
    assert (answer.status, answer.json["requiredScope"]) == (403, "bundles:force")
    event = (await registry.audit())[-1]
    assert (event["actor"], event["action"], event["subject"]) == ("publisher", "version.force_refused", "hello@1.0.0")
    assert (event["digest"], event["previous_digest"]) == (first["digest"], second["digest"])
    assert event["reason"] == "it broke"
    assert event["detail"] == {"operation": "rollback", "refusal": "forbidden", "expectedDigest": None}
    assert (await registry.request("GET", VERSION)).json == second


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"expectedDigest": f"sha256:{'0' * 64}"}, 412, "stale-digest"),
        ({"reason": "  "}, 400, "reason-required"),
        ({"reason": None}, 400, "reason-required"),
    ],
)
async def test_rollback_that_is_refused_is_recorded(
    registry: RunningRegistry, body: dict[str, Any], status: int, kind: str
) -> None:
    _, second = await published_twice(registry)
    answer = await roll_back(registry, toRevision=1, **body)
    assert (answer.status, answer.json["type"]) == (status, f"urn:stowage:problem:{kind}")
    assert answer.json["existingDigest"] == second["digest"]
    event = (await registry.audit())[-1]
    assert (event["action"], event["detail"]["refusal"]) == ("version.force_refused", kind)
    assert (await registry.request("GET", VERSION)).json == second


async def test_only_an_administrator_rolls_an_immutable_version_back(registry: RunningRegistry) -> None:
    await published_twice(registry)
    await registry.backend.fetch("UPDATE registry.versions SET immutable = true")
    token = await registry.token_for("operator")
    refused = await roll_back(registry, token=token, toRevision=1)
    assert (refused.status, refused.json["type"]) == (409, "urn:stowage:problem:version-immutable")
    assert (await registry.actions())[-1] == "version.force_refused"
    version = (await roll_back(registry, toRevision=1)).json
    assert (version["revision"], version["immutable"]) == (3, True)


async def test_platform_that_is_no_longer_allowed_is_no_way_back(registry: RunningRegistry) -> None:
    await registry.publish(bundle(version="0.1.0"), version="0.1.0")
    settings = {"allowedPlatforms": ["any"], "reason": "a Mac's"}
    assert (await registry.request("PATCH", "/job-bundles/hello", json=settings)).status == 200
    await registry.publish(bundle(files={"n.node": MACHO}))
    second = (await registry.publish(SECOND, force="true", reason="for Linux")).json
    settings = {"allowedPlatforms": ["linux"], "reason": "no Macs"}
    assert (await registry.request("PATCH", "/job-bundles/hello", json=settings)).status == 200
    refused = await roll_back(registry, toRevision=1)
    assert (refused.status, refused.json["type"]) == (422, "urn:stowage:problem:platform-not-allowed")
    assert refused.json["member"] == "n.node"
    event = (await registry.audit())[-1]
    assert (event["action"], event["detail"]["refusal"]) == ("version.force_refused", "platform-not-allowed")
    assert (await registry.request("GET", VERSION)).json == second


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({}, 400, "invalid-request"),
        ({"toRevision": 1, "toDigest": f"sha256:{'0' * 64}"}, 400, "invalid-request"),
        ({"toRevision": 0}, 400, "invalid-request"),
        ({"toRevision": 2**40}, 400, "invalid-request"),
        ({"toDigest": "sha256:nonsense"}, 400, "invalid-request"),
        ({"toRevision": 1, "expectedDigest": "r2"}, 400, "invalid-request"),
        ({"toRevision": 1, "force": True}, 400, "invalid-request"),
        ({"toRevision": 3}, 404, "revision-not-found"),
        ({"toDigest": f"sha256:{'0' * 64}"}, 404, "digest-not-found"),
    ],
)
async def test_target_that_makes_no_sense_is_refused(
    registry: RunningRegistry, body: dict[str, Any], status: int, kind: str
) -> None:
    await published_twice(registry)
    answer = await roll_back(registry, **body)
    assert (answer.status, answer.json["type"]) == (status, f"urn:stowage:problem:{kind}")
    assert await registry.actions() == ["version.published", "version.replaced"]


async def test_artifact_of_another_version_is_no_way_back(registry: RunningRegistry) -> None:
    await published_twice(registry)
    other = (await registry.publish(bundle(version="2.0.0"), version="2.0.0")).json
    assert (await roll_back(registry, toDigest=other["digest"])).status == 404
    for path, kind in (
        ("hello/versions/3.0.0", "version-not-found"),
        ("nothing/versions/1.0.0", "bundle-not-found"),
    ):
        answer = await registry.request("POST", f"/job-bundles/{path}/rollback", json={"toRevision": 1})
        assert (answer.status, answer.json["type"]) == (404, f"urn:stowage:problem:{kind}")
    latest = await registry.request("POST", "/job-bundles/hello/versions/latest/rollback", json={"toRevision": 1})
    assert latest.status == 400


async def test_artifact_whose_object_is_lost_or_cut_is_refused_until_it_is_published_again(
    registry: RunningRegistry,
) -> None:
    first, second = await published_twice(registry)
    key = next(key for key in registry.keys("artifacts/") if first["digest"].removeprefix("sha256:") in key)
    for damage in (b"", FIRST[:-1]):
        registry.objects.delete(key)
        if damage:
            registry.objects.put(key, damage, content_type="application/gzip")
        refused = await roll_back(registry, toRevision=1)
        assert (refused.status, refused.json["type"]) == (409, "urn:stowage:problem:artifact-lost")
        assert (refused.json["digest"], refused.json["revision"]) == (first["digest"], 1)
    assert (await registry.request("GET", VERSION)).json == second
    back = await registry.publish(FIRST, force="true", reason="back, by the bytes")
    assert (back.status, back.json["digest"]) == (200, first["digest"])
    assert (await registry.request("GET", f"{VERSION}/download?stream=true")).body == FIRST


async def test_bucket_that_is_away_changes_nothing(backend: Backend) -> None:
    async with running_registry(backend) as registry:
        _, second = await published_twice(registry)
    async with running_registry(backend, s3_endpoint="http://127.0.0.1:9") as registry:
        with pytest.raises(ServiceError) as refused:
            await registry.client.roll_back("hello", "1.0.0", RollbackRequest(to_revision=1, reason="back"))
        assert (refused.value.status, refused.value.kind) == (503, "object-store-unavailable")
        assert (await registry.request("GET", VERSION)).json == second
        assert await registry.actions() == ["version.published", "version.replaced"]
