"""Reading: lists, latest, references, files, downloads, deprecation, repair."""

import hashlib
import random

import aiohttp
import pytest

from tests.backend import Backend
from tests.registry.bundles import bundle
from tests.registry.running import RunningRegistry, running_registry

VERSION = "/job-bundles/hello/versions/1.0.0"


async def all_pages(registry: RunningRegistry, path: str, limit: int) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    query = {"limit": str(limit)}
    while True:
        page = (await registry.request("GET", path, params=query)).json
        assert len(page["items"]) <= limit
        found += page["items"]
        if page["next"] is None:
            return found
        assert len(page["items"]) == limit
        query["cursor"] = page["next"]


async def publish_versions(registry: RunningRegistry, versions: list[str], slug: str = "hello") -> None:
    for version in versions:
        answer = await registry.publish(bundle(slug, version), slug, version)
        assert answer.status == 201


async def test_versions_are_listed_by_precedence_in_pages(registry: RunningRegistry) -> None:
    ordered = ["2.0.0-alpha", "2.0.0-alpha.1", "2.0.0-beta.2", "2.0.0-beta.11", "2.0.0", "10.0.0"]
    ordered = ["0.9.0", "1.0.0", "1.2.0", "1.10.0", *ordered]
    shuffled = random.Random(1).sample(ordered, len(ordered))  # noqa: S311
    await publish_versions(registry, shuffled)
    for limit in (1, 3, 10, 500):
        found = await all_pages(registry, "/job-bundles/hello/versions", limit)
        assert [item["version"] for item in found] == ordered[::-1]


async def test_latest_is_the_highest_release_that_is_not_deprecated(registry: RunningRegistry) -> None:
    async def latest() -> str:
        bundle_ = (await registry.request("GET", "/job-bundles/hello")).json["latest"]
        version = (await registry.request("GET", "/job-bundles/hello/versions/latest")).json["version"]
        resolved = (await registry.client.resolve("hello", "latest")).version
        assert bundle_ == version == resolved
        return resolved

    await publish_versions(registry, ["1.0.0-rc.1"])
    assert await latest() == "1.0.0-rc.1"
    await publish_versions(registry, ["1.2.0", "1.10.0", "2.0.0-beta", "1.9.9"])
    assert await latest() == "1.10.0"
    patch = {"status": "deprecated", "reason": "broken"}
    await registry.request("PATCH", "/job-bundles/hello/versions/1.10.0", json=patch)
    assert await latest() == "1.9.9"
    await registry.request("PATCH", "/job-bundles/hello/versions/1.10.0", json={"status": "active"})
    assert await latest() == "1.10.0"


async def test_deprecating_needs_a_reason_and_is_audited_once(registry: RunningRegistry) -> None:
    version = (await registry.publish(bundle())).json
    assert (await registry.request("PATCH", VERSION, json={"status": "deprecated"})).status == 400
    for _ in range(2):
        answer = await registry.request("PATCH", VERSION, json={"status": "deprecated", "reason": "use 2.0.0"})
        assert (answer.json["status"], answer.json["deprecationReason"]) == ("deprecated", "use 2.0.0")
    event = (await registry.audit())[-1]
    assert (event["digest"], event["reason"]) == (version["digest"], "use 2.0.0")
    assert await registry.actions() == ["version.published", "version.deprecated"]
    missing = await registry.request("GET", "/job-bundles/hello/versions/latest")
    assert (missing.status, missing.json["type"]) == (404, "urn:stowage:problem:version-not-found")
    resolved = await registry.client.resolve("hello", "1.0.0")
    assert resolved.status == "deprecated"
    answer = await registry.request("PATCH", VERSION, json={"status": "active"})
    assert (answer.json["status"], answer.json["deprecationReason"]) == ("active", None)
    assert (await registry.actions())[-1] == "version.reactivated"
    latest = await registry.request("PATCH", "/job-bundles/hello/versions/latest", json={"status": "active"})
    assert latest.status == 400


async def test_replaced_artifact_still_resolves_by_its_digest(registry: RunningRegistry) -> None:
    first = (await registry.publish(bundle())).json
    await registry.publish(bundle(files={"x": "y"}), force="true", reason="mend")
    resolved = await registry.client.resolve("hello", first["digest"])
    assert (resolved.version, resolved.revision, resolved.artifact.digest) == ("1.0.0", 1, first["digest"])
    await registry.publish(bundle(), force="true", reason="back")
    assert (await registry.client.resolve("hello", first["digest"])).revision == 3
    await publish_versions(registry, ["1.0.0"], "other")
    assert (
        await registry.request("GET", "/job-bundles/other/resolve", params={"reference": first["digest"]})
    ).status == 404
    artifact = (await registry.request("GET", f"/artifacts/{first['digest']}")).json
    assert (artifact["digest"], artifact["compression"], artifact["size"]) == (first["digest"], "gzip", first["size"])


async def test_files_are_listed_in_pages(registry: RunningRegistry) -> None:
    await registry.publish(bundle(files={f"lib/{number:02}.js": str(number) for number in range(23)}))
    found = await all_pages(registry, f"{VERSION}/files", 7)
    paths = [item["path"] for item in found]
    assert paths == sorted([*(f"lib/{number:02}.js" for number in range(23)), "main.py", "manifest.json"])
    assert found[3] == {
        "path": "lib/03.js",
        "type": "file",
        "size": 1,
        "mode": "0644",
        "digest": f"sha256:{hashlib.sha256(b'3').hexdigest()}",
        "linkTarget": None,
    }


async def test_bundles_are_listed_by_slug_in_pages(registry: RunningRegistry) -> None:
    for slug in ("c", "a", "b-2", "b", "b-10"):
        await publish_versions(registry, ["1.0.0"], slug)
    for limit in (1, 2, 5):
        found = await all_pages(registry, "/job-bundles", limit)
        assert sorted(str(item["slug"]) for item in found) == ["a", "b", "b-10", "b-2", "c"]
    assert (await registry.request("GET", "/job-bundles", params={"cursor": "nonsense"})).status == 400
    assert (await registry.request("GET", "/job-bundles", params={"limit": "0"})).status == 400


@pytest.mark.parametrize(
    "path",
    [
        "/job-bundles/nothing",
        "/job-bundles/nothing/versions",
        "/job-bundles/nothing/versions/latest",
        f"{VERSION}/revisions",
        f"{VERSION}/files",
        f"{VERSION}/download",
        f"/artifacts/sha256:{'0' * 64}",
        "/job-bundles/nothing/resolve?reference=1.0.0",
        "/jobs/nothing",
        "/workflows/nothing",
        "/no-such-route",
    ],
)
async def test_what_is_not_there_is_a_problem_with_a_request_id(registry: RunningRegistry, path: str) -> None:
    answer = await registry.request("GET", path, headers={"X-Request-Id": "my-own.id"})
    assert answer.status == 404
    assert answer.headers["Content-Type"] == "application/problem+json; charset=utf-8"
    assert (answer.json["requestId"], answer.headers["X-Request-Id"]) == ("my-own.id", "my-own.id")


async def test_download_redirects_to_a_url_that_needs_no_token(registry: RunningRegistry) -> None:
    data = bundle()
    version = (await registry.publish(data)).json
    answer = await registry.request("GET", f"{VERSION}/download")
    assert (answer.status, answer.headers["ETag"]) == (307, f'"{version["digest"]}"')
    async with aiohttp.ClientSession() as session, session.get(answer.headers["Location"]) as response:
        assert await response.read() == data
        assert response.headers["Content-Disposition"] == 'attachment; filename="hello-1.0.0.tgz"'
    known = await registry.request("GET", f"{VERSION}/download", headers={"If-None-Match": answer.headers["ETag"]})
    assert (known.status, known.body) == (304, b"")


async def test_streamed_download_honours_head_and_ranges(registry: RunningRegistry) -> None:
    data = bundle(files={"data": random.Random(1).randbytes(3_000_000)})  # noqa: S311
    version = (await registry.publish(data)).json
    path = f"{VERSION}/download?stream=true"
    whole = await registry.request("GET", path)
    assert (whole.status, whole.body) == (200, data)
    assert (whole.headers["ETag"], whole.headers["Content-Type"]) == (f'"{version["digest"]}"', "application/gzip")
    head = await registry.request("HEAD", path)
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(data)))
    ranges = {"bytes=0-9": (0, 10), "bytes=2000000-": (2000000, len(data)), "bytes=-5": (len(data) - 5, len(data))}
    for asked, (start, stop) in ranges.items():
        part = await registry.request("GET", path, headers={"Range": asked})
        assert (part.status, part.body) == (206, data[start:stop])
        assert part.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(data)}"
    beyond = await registry.request("GET", path, headers={"Range": f"bytes={len(data)}-"})
    assert beyond.status == 416
    assert (await registry.request("GET", path, headers={"Range": "lines=1"})).status == 200


async def test_object_with_wrong_bytes_breaks_the_download_and_is_mended_by_force(registry: RunningRegistry) -> None:
    data = bundle(files={"data": random.Random(1).randbytes(3_000_000)})  # noqa: S311
    version = (await registry.publish(data)).json
    (key,) = registry.keys("artifacts/")
    registry.objects.put(key, data[:-1] + bytes([data[-1] ^ 1]), content_type="application/gzip")
    with pytest.raises(aiohttp.ClientPayloadError):
        await registry.request("GET", f"{VERSION}/download?stream=true")
    again = await registry.publish(data, force="true", reason="repair")
    assert (again.status, again.json) == (200, version)
    assert (await registry.request("GET", f"{VERSION}/download?stream=true")).body == data
    assert await registry.actions() == ["version.published"]


@pytest.mark.parametrize("damage", ["missing", "shorter"])
async def test_lost_object_is_repaired_by_publishing_again(registry: RunningRegistry, damage: str) -> None:
    version = (await registry.publish(bundle())).json
    (key,) = registry.keys("artifacts/")
    if damage == "missing":
        registry.objects.delete(key)
    else:
        registry.objects.put(key, b"short", content_type="application/gzip")
    for query in ("", "?stream=true"):
        lost = await registry.request("GET", f"{VERSION}/download{query}")
        assert (lost.status, lost.json["type"]) == (503, "urn:stowage:problem:artifact-damaged")
    again = await registry.publish(bundle())
    assert (again.status, again.json) == (200, version)
    assert (await registry.request("GET", f"{VERSION}/download?stream=true")).body == bundle()
    assert await registry.actions() == ["version.published", "artifact.repaired"]
    assert registry.keys("uploads/") == []


async def test_lost_object_is_not_hidden_by_equal_content_in_other_bytes(registry: RunningRegistry) -> None:
    await registry.publish(bundle())
    (key,) = registry.keys("artifacts/")
    registry.objects.delete(key)
    zstd = bundle(compression="zstd")
    refused = await registry.publish(zstd)
    assert (refused.status, refused.json["type"]) == (409, "urn:stowage:problem:artifact-lost")
    assert registry.keys() == []
    replaced = await registry.publish(zstd, force="true", reason="the object was lost")
    assert (replaced.status, replaced.json["revision"]) == (200, 2)
    assert (await registry.request("GET", f"{VERSION}/download?stream=true")).body == zstd


async def test_every_route_but_health_needs_a_token_and_its_scope(registry: RunningRegistry) -> None:
    powerless = await registry.token_for("runs-only", "runs:write")
    routes = [
        ("PUT", VERSION), ("POST", "/job-bundles"), ("GET", "/job-bundles"), ("GET", "/job-bundles/hello"),
        ("GET", "/job-bundles/hello/versions"), ("GET", VERSION), ("PATCH", VERSION), ("GET", f"{VERSION}/revisions"),
        ("POST", f"{VERSION}/rollback"), ("GET", "/job-bundles/hello/diff"),
        ("GET", f"{VERSION}/files"), ("GET", f"{VERSION}/download"), ("HEAD", f"{VERSION}/download"),
        ("GET", f"/artifacts/sha256:{'0' * 64}"), ("GET", "/job-bundles/hello/resolve"), ("GET", "/jobs"),
        ("GET", "/jobs/x"), ("PUT", "/jobs/x"), ("GET", "/workflows"), ("GET", "/workflows/x"), ("PUT", "/workflows/x"),
        ("POST", "/tokens"), ("GET", "/tokens"), ("DELETE", "/tokens/x"), ("POST", "/tokens/introspect"),
        ("GET", "/audit"), ("POST", "/artifacts/uses"),
    ]  # fmt: skip
    for method, path in routes:
        for token, status in ((None, 401), ("stw_wrong", 401), ("\u00ff", 401), (powerless, 403)):
            answer = await registry.request(method, path, token=token)
            assert answer.status == status, (method, path)
            assert answer.headers["Content-Type"].startswith("application/problem+json")
    for path in ("/livez", "/readyz"):
        assert (await registry.request("GET", path, token=None)).status == 200


async def test_lists_do_not_depend_on_s3(backend: Backend) -> None:
    async with running_registry(backend) as registry:
        await registry.publish(bundle())
    async with running_registry(backend, s3_endpoint="http://127.0.0.1:9", token_cache_seconds=0) as registry:
        assert (await registry.request("GET", VERSION)).status == 200
        assert (await registry.request("GET", f"{VERSION}/download")).status == 503
