"""Many writers at once: one outcome for each, one line of revisions, nothing lost and nothing left over."""

import asyncio
import os
from collections import Counter
from itertools import pairwise

from tests.backend import Backend
from tests.registry.bundles import bundle, digest_of
from tests.registry.running import RunningRegistry, running_registry


async def assert_in_agreement(registry: RunningRegistry) -> None:
    """Rows, objects and audit trail tell the same story."""
    recorded = await registry.backend.fetch("SELECT digest, object_key, size, collected_at FROM registry.artifacts")
    artifacts = [row for row in recorded if row["collected_at"] is None]
    assert sorted(row["object_key"] for row in artifacts) == registry.keys("artifacts/")
    for row in artifacts:
        info = registry.objects.head(row["object_key"])
        assert info is not None
        assert info.size == row["size"]
    assert registry.keys("uploads/") == []
    assert registry.objects.abort_uploads("") == 0
    referred = await registry.backend.fetch("SELECT DISTINCT digest FROM registry.revisions")
    assert {row["digest"] for row in referred} == {row["digest"] for row in recorded}
    lines: dict[str, list[dict[str, object]]] = {}
    for row in await registry.backend.fetch(
        "SELECT b.slug || '@' || v.version AS subject, v.revision AS current, r.revision, r.digest, r.previous_digest, "
        "r.published_at, r.rolled_back_to FROM registry.revisions r JOIN registry.versions v ON v.id = r.version_id "
        "JOIN registry.bundles b ON b.id = v.bundle_id ORDER BY 1, r.revision"
    ):
        lines.setdefault(row["subject"], []).append(dict(row))
    written = ("version.published", "version.replaced", "version.rolled_back")
    events = [event for event in await registry.audit() if event["action"] in written]
    for subject, line in lines.items():
        assert [row["revision"] for row in line] == list(range(1, len(line) + 1))
        assert {row["current"] for row in line} == {len(line)}
        assert line[0]["previous_digest"] is None
        for earlier, later in pairwise(line):
            assert later["previous_digest"] == earlier["digest"]
            assert later["digest"] != earlier["digest"]
            assert later["published_at"] > earlier["published_at"]  # type: ignore[operator]
        told = [event for event in events if event["subject"] == subject]
        assert [(event["digest"], event["previous_digest"]) for event in told] == [
            (row["digest"], row["previous_digest"]) for row in line
        ]
        assert [event["action"] for event in told] == ["version.published"] + [
            "version.replaced" if row["rolled_back_to"] is None else "version.rolled_back" for row in line[1:]
        ]
        for revision in line:
            back = revision["rolled_back_to"]
            assert back is None or revision["digest"] == line[back - 1]["digest"]  # type: ignore[operator]
    assert len(events) == sum(map(len, lines.values()))


async def test_fifty_forced_publishers_make_one_line_of_revisions(backend: Backend) -> None:
    contents = [bundle(files={"data": f"content {number}" * 500}) for number in range(20)]
    async with (
        running_registry(backend, database_pool_size=8) as one,
        running_registry(backend, database_pool_size=4) as other,
    ):

        async def publish(number: int) -> tuple[int, dict[str, object]]:
            registry = one if number % 2 else other
            content = contents[number % 20]
            declared = {"digest": digest_of(content)} if number % 3 else {}
            answer = await registry.publish(content, force="true", reason=f"writer {number}", **declared)
            return answer.status, answer.json

        answers = await asyncio.gather(*map(publish, range(50)))
        assert Counter(status for status, _ in answers) == {201: 1, 200: 49}
        await assert_in_agreement(one)
        written = await one.backend.fetch("SELECT reason FROM registry.revisions ORDER BY revision")
        reasons = [row["reason"] for row in written]
        assert max(Counter(reasons).values()) == 1
        for number, (_, version) in enumerate(answers):  # whoever is told of a replacement by them has written it
            assert version["reason"] != f"writer {number}" or f"writer {number}" in reasons
        assert len({version["digest"] for _, version in answers}) == 20


async def test_large_forced_publishers_make_one_line_of_revisions(registry: RunningRegistry) -> None:
    contents = [bundle(files={"data": os.urandom(9 * 1024 * 1024)}) for _ in range(4)]
    answers = await asyncio.gather(
        *(registry.publish(contents[number % 4], force="true", reason=str(number)) for number in range(8))
    )
    assert Counter(answer.status for answer in answers) == {201: 1, 200: 7}
    await assert_in_agreement(registry)


async def test_of_first_publishers_with_different_content_exactly_one_wins(registry: RunningRegistry) -> None:
    answers = await asyncio.gather(*(registry.publish(bundle(files={"n": str(n)})) for n in range(20)))
    assert Counter(answer.status for answer in answers) == {201: 1, 409: 19}
    (winner,) = (answer.json for answer in answers if answer.status == 201)
    assert {answer.json["existingDigest"] for answer in answers if answer.status == 409} == {winner["digest"]}
    await assert_in_agreement(registry)


async def test_first_publishers_with_the_same_content_agree(registry: RunningRegistry) -> None:
    answers = await asyncio.gather(*(registry.publish(bundle()) for _ in range(20)))
    assert Counter(answer.status for answer in answers) == {201: 1, 200: 19}
    assert len({answer.json["digest"] for answer in answers}) == 1
    await assert_in_agreement(registry)


async def test_first_publishers_of_equal_content_in_other_bytes_keep_one_artifact(registry: RunningRegistry) -> None:
    answers = await asyncio.gather(
        *(registry.publish(bundle(compression="zstd" if n % 2 else "gzip", level=1 + n % 5)) for n in range(20))
    )
    assert Counter(answer.status for answer in answers) == {201: 1, 200: 19}
    await assert_in_agreement(registry)
    assert len(registry.keys()) == 1


async def test_versions_of_a_new_bundle_can_be_published_at_once(registry: RunningRegistry) -> None:
    answers = await asyncio.gather(
        *(registry.publish(bundle(version=f"1.0.{n}"), version=f"1.0.{n}") for n in range(20))
    )
    assert {answer.status for answer in answers} == {201}
    await assert_in_agreement(registry)
    assert (await registry.request("GET", "/job-bundles/hello")).json["latest"] == "1.0.19"


async def test_of_replacements_that_expect_the_same_digest_exactly_one_wins(registry: RunningRegistry) -> None:
    first = (await registry.publish(bundle())).json
    answers = await asyncio.gather(
        *(
            registry.publish(bundle(files={"n": str(n)}), force="true", reason="mine", expectedDigest=first["digest"])
            for n in range(20)
        )
    )
    assert Counter(answer.status for answer in answers) == {200: 1, 412: 19}
    (winner,) = (answer.json for answer in answers if answer.status == 200)
    assert {answer.json["currentDigest"] for answer in answers if answer.status == 412} == {winner["digest"]}
    assert (await registry.actions()).count("version.force_refused") == 19
    await assert_in_agreement(registry)


async def test_publishers_and_rollbacks_make_one_line_of_revisions(backend: Backend) -> None:
    contents = [bundle(files={"n": str(n)}) for n in range(4)]
    async with (
        running_registry(backend, database_pool_size=8) as one,
        running_registry(backend, database_pool_size=4) as other,
    ):
        digests = [(await one.publish(data, force="true", reason="begin")).json["digest"] for data in contents]

        async def change(number: int) -> int:
            registry = one if number % 2 else other
            if number % 4 == 0:
                return (await registry.publish(contents[number // 4 % 4], force="true", reason=f"{number}")).status
            target = {"toRevision": 1 + number % 4} if number % 4 == 1 else {"toDigest": digests[number // 4 % 4]}
            path = "/job-bundles/hello/versions/1.0.0/rollback"
            return (await registry.request("POST", path, json={"reason": f"{number}", **target})).status

        assert Counter(await asyncio.gather(*map(change, range(48)))) == {200: 48}
        await assert_in_agreement(one)
        assert "version.rolled_back" in await one.actions()


async def test_of_rollbacks_that_expect_the_same_digest_exactly_one_wins(registry: RunningRegistry) -> None:
    for number in range(3):
        current = (await registry.publish(bundle(files={"n": str(number)}), force="true", reason="begin")).json
    body = {"reason": "back", "expectedDigest": current["digest"]}
    answers = await asyncio.gather(
        *(
            registry.request(
                "POST", "/job-bundles/hello/versions/1.0.0/rollback", json={**body, "toRevision": 1 + number % 2}
            )
            for number in range(12)
        )
    )
    # Those that go where the winner went find it done.
    assert Counter(answer.status for answer in answers) == {200: 6, 412: 6}
    assert {answer.json["revision"] for answer in answers if answer.status == 200} == {4}
    await assert_in_agreement(registry)


async def test_losers_do_not_take_away_what_a_winner_with_the_same_content_refers_to(registry: RunningRegistry) -> None:
    """Replacing, conflicting and identical writers of the same few contents: each loser tidies up what it uploaded."""
    contents = [bundle(files={"n": str(n)}) for n in range(3)]
    for _ in range(4):
        await asyncio.gather(
            *(
                registry.publish(contents[n % 3], **({"force": "true", "reason": "r"} if n % 2 else {}))
                for n in range(18)
            )
        )
        await assert_in_agreement(registry)


async def test_deprecating_and_replacing_at_once_loses_neither(registry: RunningRegistry) -> None:
    await registry.publish(bundle())
    answers = await asyncio.gather(
        *(registry.publish(bundle(files={"n": str(n)}), force="true", reason="r") for n in range(5)),
        registry.request(
            "PATCH", "/job-bundles/hello/versions/1.0.0", json={"status": "deprecated", "reason": "use 2.0.0"}
        ),
    )
    assert {answer.status for answer in answers} == {200}
    version = (await registry.request("GET", "/job-bundles/hello/versions/1.0.0")).json
    assert (version["revision"], version["status"]) == (6, "deprecated")
