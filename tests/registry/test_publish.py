"""The publish table, row by row."""

import asyncio
import gzip
import hashlib
import io
import os

import pytest

from tests.registry.bundles import bundle, digest_of
from tests.registry.running import NOTHING, Answer, RunningRegistry


async def test_new_version_is_created_with_revision_1(registry: RunningRegistry) -> None:
    data = bundle(description="says hello")
    answer = await registry.publish(data, buildId="bld_1")
    assert answer.status == 201
    version = answer.json
    assert version["digest"] == digest_of(data)
    assert (version["slug"], version["version"], version["revision"]) == ("hello", "1.0.0", 1)
    assert (version["publishedBy"], version["status"], version["platforms"]) == ("admin", "active", [])
    assert version["size"] == len(data)
    assert version["fileCount"] == 2
    assert version["manifest"]["description"] == "says hello"
    assert [version[name] for name in ("replacedAt", "replacedBy", "reason", "previousDigest")] == [None] * 4
    (event,) = await registry.audit()
    assert (event["actor"], event["action"], event["subject"]) == ("admin", "version.published", "hello@1.0.0")
    assert (event["digest"], event["previous_digest"], event["reason"]) == (version["digest"], None, None)
    assert event["request_id"] == answer.headers["X-Request-Id"]
    assert event["client"] == "127.0.0.1"
    assert event["detail"]["buildId"] == "bld_1"
    hexadecimal = hashlib.sha256(data).hexdigest()
    assert registry.keys() == [f"artifacts/sha256/{hexadecimal[:2]}/{hexadecimal}.tgz"]


@pytest.mark.parametrize("declares", [False, True], ids=["", "declared"])
@pytest.mark.parametrize("size", [0, 20 * 1024 * 1024], ids=["small", "large"])
async def test_object_carries_what_a_person_wants_to_know(registry: RunningRegistry, declares: bool, size: int) -> None:
    data = bundle(compression="zstd", files={"data": os.urandom(size)})
    answer = await registry.publish(data, **({"digest": digest_of(data)} if declares else {}))
    assert answer.status == 201
    (key,) = registry.keys("artifacts/")
    info = registry.objects.head(key)
    assert info is not None
    assert key.endswith(".tar.zst")
    assert info.content_type == "application/zstd"
    assert info.metadata == {
        "slug": "hello",
        "version": "1.0.0",
        "platforms": "any",
        "content-digest": answer.json["contentDigest"],
        "built-by": "admin",
    }
    with registry.objects.read(key) as body:
        assert b"".join(body) == data
    assert registry.keys("uploads/") == []


async def test_more_large_tarballs_at_a_time_than_are_streamed_are_all_published(registry: RunningRegistry) -> None:
    async def one(number: int) -> Answer:
        data = bundle(f"bundle-{number}", files={"data": os.urandom(9 * 1024 * 1024)}, compression="zstd")
        return await registry.publish(data, f"bundle-{number}", digest=digest_of(data))

    answers = await asyncio.gather(*map(one, range(20)))
    assert [answer.status for answer in answers] == [201] * 20
    assert (len(registry.keys()), registry.objects.abort_uploads("")) == (20, 0)


async def test_encoded_body_has_the_length_that_it_has_when_it_is_decoded(registry: RunningRegistry) -> None:
    data = bundle(files={"data": os.urandom(9 * 1024 * 1024)}, compression="zstd")
    answer = await registry.request(
        "PUT",
        "/job-bundles/hello/versions/1.0.0",
        params={"digest": digest_of(data)},
        data=io.BytesIO(gzip.compress(data, 1)),
        headers={"Content-Encoding": "gzip"},
    )
    assert (answer.status, answer.json["digest"], answer.json["size"]) == (201, digest_of(data), len(data))


async def test_tarball_that_is_not_what_its_publisher_says_is_refused(registry: RunningRegistry) -> None:
    data, other = bundle(), bundle(files={"more": "x"})
    answer = await registry.publish(data, digest=digest_of(other))
    assert (answer.status, answer.json["type"]) == (422, "urn:stowage:problem:digest-mismatch")
    assert (answer.json["declaredDigest"], answer.json["digest"]) == (digest_of(other), digest_of(data))
    assert await registry.residue() == NOTHING


async def test_object_of_an_artifact_survives_that_others_send_it_wrongly(registry: RunningRegistry) -> None:
    """Their parts have its key, but are never seen."""
    data = bundle(files={"data": os.urandom(20 * 1024 * 1024)})
    first = await registry.publish(data)
    for body in (data[:-9], bundle(files={"more": "x"})):
        wrong = await registry.publish(body, digest=digest_of(data), force="true", reason="sent wrongly")
        assert wrong.status == 422
    again = await registry.publish(data, digest=digest_of(data))
    assert (first.status, again.status, again.json["revision"]) == (201, 200, 1)
    downloaded = await registry.request("GET", "/job-bundles/hello/versions/1.0.0/download?stream=true")
    assert digest_of(downloaded.body) == digest_of(data)


@pytest.mark.parametrize("query", [{}, {"force": "true"}, {"force": "true", "expectedDigest": f"sha256:{'0' * 64}"}])
async def test_same_content_changes_nothing(registry: RunningRegistry, query: dict[str, str]) -> None:
    first = await registry.publish(bundle())
    again = await registry.publish(bundle(), **query)
    assert (again.status, again.json) == (200, first.json)
    assert len(await registry.audit()) == 1


async def test_same_content_packed_otherwise_changes_nothing(registry: RunningRegistry) -> None:
    first = await registry.publish(bundle())
    again = await registry.publish(bundle(compression="zstd"), force="true", reason="why not")
    assert (again.status, again.json) == (200, first.json)
    assert len(await registry.audit()) == 1
    assert len(registry.keys()) == 1


async def test_same_content_needs_no_right_to_force(registry: RunningRegistry) -> None:
    token = await registry.token_for("publisher", "bundles:publish")
    await registry.publish(bundle())
    assert (await registry.publish(bundle(), token=token, force="true")).status == 200


async def test_other_content_without_force_is_a_conflict_that_says_what_differs(registry: RunningRegistry) -> None:
    old = await registry.publish(bundle(files={"a.txt": "a", "b.txt": "b"}))
    offered = bundle(files={"b.txt": "B", **{f"new/{number:02}.txt": "n" for number in range(25)}})
    answer = await registry.publish(offered)
    assert answer.status == 409
    problem = answer.json
    assert problem["type"] == "urn:stowage:problem:version-exists"
    assert problem["existingDigest"] == old.json["digest"]
    assert (problem["publishedBy"], problem["publishedAt"]) == ("admin", old.json["publishedAt"])
    assert problem["difference"] == {
        "added": 25,
        "removed": 1,
        "changed": 1,
        "addedBytes": 25,
        "removedBytes": 1,
        "changedBytes": 0,
        "platformsAdded": [],
        "platformsRemoved": [],
        "addedPaths": [f"new/{number:02}.txt" for number in range(20)],
        "removedPaths": ["a.txt"],
        "changedPaths": ["b.txt"],
    }
    assert [event["action"] for event in await registry.audit()] == ["version.published"]
    assert len(registry.keys()) == 1


async def test_force_without_the_scope_is_forbidden_and_recorded(registry: RunningRegistry) -> None:
    token = await registry.token_for("publisher", "bundles:publish")
    old = await registry.publish(bundle())
    offered = bundle(files={"x": "y"})
    answer = await registry.publish(offered, token=token, force="true", reason="want it")
    assert answer.status == 403
    assert answer.json["requiredScope"] == "bundles:force"
    event = (await registry.audit())[-1]
    assert (event["actor"], event["action"], event["subject"]) == ("publisher", "version.force_refused", "hello@1.0.0")
    assert (event["digest"], event["previous_digest"]) == (digest_of(offered), old.json["digest"])
    assert (event["reason"], event["detail"]["refusal"]) == ("want it", "forbidden")
    assert len(registry.keys()) == 1


async def test_force_with_a_stale_expected_digest_is_refused_and_recorded(registry: RunningRegistry) -> None:
    old = await registry.publish(bundle())
    answer = await registry.publish(
        bundle(files={"x": "y"}), force="true", reason="mend", expectedDigest=f"sha256:{'0' * 64}"
    )
    assert answer.status == 412
    assert answer.json["currentDigest"] == old.json["digest"]
    event = (await registry.audit())[-1]
    assert (event["action"], event["detail"]["refusal"]) == ("version.force_refused", "stale-digest")
    assert len(registry.keys()) == 1


async def test_expected_digest_of_a_version_that_does_not_exist_is_refused(registry: RunningRegistry) -> None:
    answer = await registry.publish(bundle(), force="true", reason="x", expectedDigest=f"sha256:{'0' * 64}")
    assert answer.status == 412
    assert answer.json["currentDigest"] is None
    (event,) = await registry.audit()
    assert event["action"] == "version.force_refused"
    assert registry.keys() == []


async def test_force_replaces_with_a_trace(registry: RunningRegistry) -> None:
    old = (await registry.publish(bundle())).json
    offered = bundle(files={"x": "y"})
    answer = await registry.publish(offered, force="true", reason="mend the build", expectedDigest=old["digest"])
    assert answer.status == 200
    version = answer.json
    assert (version["revision"], version["digest"]) == (2, digest_of(offered))
    assert (version["replacedBy"], version["reason"]) == ("admin", "mend the build")
    assert version["previousDigest"] == old["digest"]
    assert version["publishedAt"] == old["publishedAt"]
    assert version["replacedAt"] > old["publishedAt"]
    event = (await registry.audit())[-1]
    assert event["action"] == "version.replaced"
    assert (event["digest"], event["previous_digest"]) == (version["digest"], old["digest"])
    assert event["reason"] == "mend the build"
    assert event["detail"]["difference"]["addedPaths"] == ["x"]
    assert len(registry.keys("artifacts/")) == 2
    assert registry.keys("uploads/") == []
    revisions = (await registry.request("GET", "/job-bundles/hello/versions/1.0.0/revisions")).json["items"]
    assert [(item["revision"], item["digest"], item["previousDigest"]) for item in revisions] == [
        (2, version["digest"], old["digest"]),
        (1, old["digest"], None),
    ]


async def test_force_of_a_new_version_needs_no_reason(registry: RunningRegistry) -> None:
    assert (await registry.publish(bundle(), force="true")).status == 201


@pytest.mark.parametrize("reason", [{}, {"reason": "  "}])
async def test_force_without_a_reason_is_refused(registry: RunningRegistry, reason: dict[str, str]) -> None:
    await registry.publish(bundle())
    answer = await registry.publish(bundle(files={"x": "y"}), force="true", **reason)
    assert (answer.status, answer.json["parameter"]) == (400, "reason")
    assert len(registry.keys()) == 1
    assert (await registry.request("GET", "/job-bundles/hello/versions/1.0.0")).json["revision"] == 1


async def test_going_back_to_earlier_content_is_a_new_revision(registry: RunningRegistry) -> None:
    first = (await registry.publish(bundle())).json
    second = (await registry.publish(bundle(files={"x": "y"}), force="true", reason="forth")).json
    back = await registry.publish(bundle(), force="true", reason="back")
    assert (back.status, back.json["revision"]) == (200, 3)
    assert (back.json["digest"], back.json["previousDigest"]) == (first["digest"], second["digest"])


@pytest.mark.parametrize(
    "query",
    [
        {"expectedDigest": "sha256:nonsense"},
        {"expectDigest": f"sha256:{'0' * 64}"},
        {"force": "perhaps"},
        {"buildId": "../x"},
        {"reason": "x" * 1001},
    ],
)
async def test_query_that_makes_no_sense_is_refused(registry: RunningRegistry, query: dict[str, str]) -> None:
    assert (await registry.publish(bundle(), **query)).status == 400
    assert registry.keys() == []


@pytest.mark.parametrize(
    ("slug", "version"), [("Hello", "1.0.0"), ("hello", "latest"), ("hello", "1.0"), ("-x", "1.0.0")]
)
async def test_names_that_are_none_are_refused(registry: RunningRegistry, slug: str, version: str) -> None:
    answer = await registry.publish(bundle(), slug, version)
    assert answer.status == 400
    assert answer.headers["Content-Type"].startswith("application/problem+json")


async def test_reason_with_a_nul_is_the_callers_mistake(registry: RunningRegistry) -> None:
    await registry.publish(bundle())
    answer = await registry.publish(bundle(files={"x": "y"}), force="true", reason="a\x00b")
    assert answer.status == 400
    assert len(registry.keys()) == 1


async def test_refused_publications_of_many_kinds_leave_only_what_was_there(registry: RunningRegistry) -> None:
    await registry.publish(bundle())
    answers = await asyncio.gather(*(registry.publish(bundle(files={"n": str(n)})) for n in range(10)))
    assert {answer.status for answer in answers} == {409}
    assert len(registry.keys()) == 1
