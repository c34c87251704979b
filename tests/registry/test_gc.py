"""Collecting what nothing keeps: what goes, what stays, and that nobody is hurt who publishes or runs meanwhile."""

import asyncio
import contextlib
import hashlib
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest
import structlog
from pydantic import ValidationError

from libs.common.audit import Origin
from libs.common.database import alone, open_pool
from libs.common.errors import Unavailable
from libs.common.objects import ObjectStore
from services.registry.__main__ import main
from services.registry.collection import Collection, Collector
from services.registry.settings import RegistrySettings
from services.registry.store.collection import Retention, claim
from tests.backend import Backend
from tests.registry.bundles import bundle
from tests.registry.running import RunningRegistry, running_registry
from tests.registry.test_races import assert_in_agreement

AT_ONCE = Retention(keep_revisions=1, keep_used_days=1, grace_seconds=0)
BY_HAND = Origin(actor="somebody")
VERSION = "/job-bundles/hello/versions/1.0.0"


@contextlib.asynccontextmanager
async def collector(
    backend: Backend, retention: Retention = AT_ONCE, *, objects: ObjectStore | None = None
) -> AsyncIterator[Collector]:
    store = objects or backend.objects()
    try:
        async with open_pool(backend.database_url, size=4, application_name="stowage-gc") as pool:
            yield Collector(pool, store, retention, upload_max_age_seconds=3600)
    finally:
        store.close()


async def collect(registry: RunningRegistry, retention: Retention = AT_ONCE) -> Collection:
    async with collector(registry.backend, retention) as collecting:
        return await collecting.collect(BY_HAND)


async def revisions(registry: RunningRegistry, count: int) -> list[str]:
    """Publish so many revisions of one version; their digests."""
    answers = [
        await registry.publish(bundle(files={"n": str(number)}), force="true", reason="next") for number in range(count)
    ]
    return [answer.json["digest"] for answer in answers]


async def pass_time(registry: RunningRegistry, interval: str) -> None:
    """Let everything that was stored, used or marked have been so for longer."""
    await registry.backend.fetch(
        "UPDATE registry.artifacts SET stored_at = stored_at - $1::text::interval, "
        "last_used_at = last_used_at - $1::text::interval, gc_marked_at = gc_marked_at - $1::text::interval",
        interval,
    )


def present(registry: RunningRegistry) -> set[str]:
    return {f"sha256:{key.rpartition('/')[2].partition('.')[0]}" for key in registry.keys("artifacts/")}


async def test_only_what_neither_revisions_nor_uses_nor_grace_keep_is_collected(registry: RunningRegistry) -> None:
    digests = await revisions(registry, 6)
    policy = Retention(keep_revisions=2, keep_used_days=90, grace_seconds=172_800)
    await registry.request("GET", "/job-bundles/hello/resolve", params={"reference": digests[1]})
    assert (await collect(registry, policy)).marked == []  # all of it was stored just now
    await pass_time(registry, "3 days")
    marked = await collect(registry, policy)
    assert {item.digest for item in marked.marked} == {digests[0], digests[2], digests[3]}
    assert marked.artifacts == []
    assert present(registry) == set(digests)
    assert (await collect(registry, policy)).artifacts == []  # the grace begins with the mark
    await pass_time(registry, "3 days")
    collected = await collect(registry, policy)
    assert {item.digest for item in collected.artifacts} == {digests[0], digests[2], digests[3]}
    assert present(registry) == {digests[1], digests[4], digests[5]}
    await pass_time(registry, "90 days")
    await collect(registry, policy)
    await pass_time(registry, "3 days")
    assert [item.digest for item in (await collect(registry, policy)).artifacts] == [digests[1]]
    assert present(registry) == set(digests[4:])
    await assert_in_agreement(registry)


async def test_by_default_every_revision_is_kept(registry: RunningRegistry) -> None:
    digests = await revisions(registry, 3)
    await pass_time(registry, "1000 days")
    policy = RegistrySettings(**registry.backend.settings).retention  # type: ignore[arg-type]
    for _ in range(2):
        assert not (await collect(registry, policy)).found_something
        await pass_time(registry, "1000 days")
    assert present(registry) == set(digests)


async def test_collection_is_told_and_recorded(registry: RunningRegistry) -> None:
    old, new = await revisions(registry, 2)
    await collect(registry)
    collected, finished = (await registry.audit())[-2:]
    assert (collected["actor"], collected["action"]) == ("somebody", "artifact.collected")
    assert (collected["subject"], collected["digest"]) == (f"artifact/{old}", old)
    assert collected["detail"]["versions"] == ["hello@1.0.0"]
    assert (finished["action"], finished["detail"]["artifacts"]) == ("gc.finished", 1)
    before = len(await registry.audit())
    await collect(registry)
    assert len(await registry.audit()) == before  # nothing was collected, so there is nothing to tell

    for path in (f"/job-bundles/hello/resolve?reference={old}", f"/artifacts/{old}"):
        answer = await registry.request("GET", path)
        assert (answer.status, answer.json["type"]) == (410, "urn:stowage:problem:artifact-collected")
        assert (
            answer.json["policy"] == "keep the last 1 revisions of each version and what runs used in the last 1 days"
        )
        assert "Publish the same content again" in answer.json["detail"]
        assert answer.json["collectedAt"] in answer.json["detail"]
    back = {"toRevision": 1, "reason": "it was better"}
    refused = await registry.request("POST", f"{VERSION}/rollback", json=back)
    assert (refused.status, refused.json["type"]) == (410, "urn:stowage:problem:artifact-collected")
    listed = (await registry.request("GET", f"{VERSION}/revisions")).json["items"]
    assert [item["digest"] for item in listed] == [new, old]  # the ledger is what it was
    assert [item["collectedAt"] is not None for item in listed] == [False, True]


async def test_collected_artifact_is_there_again_once_its_content_is_published(registry: RunningRegistry) -> None:
    old, _ = await revisions(registry, 2)
    await collect(registry)
    back = await registry.publish(bundle(files={"n": "0"}), force="true", reason="needed after all")
    assert (back.json["digest"], back.json["revision"]) == (old, 3)
    resolved = await registry.request("GET", f"/job-bundles/hello/resolve?reference={old}")
    assert resolved.status == 200
    assert (await registry.audit())[-2]["detail"] == {"was": "collected", "publishedAs": "hello@1.0.0"}
    await assert_in_agreement(registry)


async def test_use_takes_a_mark_away(registry: RunningRegistry) -> None:
    digests = await revisions(registry, 3)
    policy = Retention(keep_revisions=1, keep_used_days=1, grace_seconds=3600)
    await pass_time(registry, "2 hours")
    assert {item.digest for item in (await collect(registry, policy)).marked} == set(digests[:2])
    await pass_time(registry, "2 hours")
    await registry.request("GET", f"/job-bundles/hello/resolve?reference={digests[0]}")
    noted = await registry.request("POST", "/artifacts/uses", json={"digests": [digests[1], f"sha256:{'0' * 64}"]})
    assert noted.json == {"unavailable": [f"sha256:{'0' * 64}"]}
    assert (await collect(registry, policy)).artifacts == []
    assert present(registry) == set(digests)


async def test_uses_are_written_once_an_hour(registry: RunningRegistry) -> None:
    (digest,) = await revisions(registry, 1)

    async def row() -> Any:
        return (await registry.backend.fetch("SELECT xmin, last_used_at FROM registry.artifacts"))[0]

    for reference in ("latest", "1.0.0", digest):
        await asyncio.gather(
            *(registry.request("GET", f"/job-bundles/hello/resolve?reference={reference}") for _ in range(5))
        )
    first = await row()
    assert first["last_used_at"] is not None
    await registry.request("POST", "/artifacts/uses", json={"digests": [digest]})
    assert await row() == first
    await pass_time(registry, "61 minutes")
    await registry.request("GET", "/job-bundles/hello/resolve?reference=latest")
    assert (await row())["last_used_at"] >= first["last_used_at"]


async def test_objects_without_a_row_go_after_the_grace_and_nothing_else_does(registry: RunningRegistry) -> None:
    (digest,) = await revisions(registry, 1)
    named = registry.keys("artifacts/")
    foreign = ["artifacts/readme.txt", f"artifacts/sha256/ab/{'0' * 64}.tgz", "artifacts/sha256/ab/x.tgz", "outputs/a"]
    orphan = f"artifacts/sha256/00/{'0' * 64}.tar.zst"
    for key in [*foreign, orphan, "uploads/upl_000000000001abcdefabcdefabcd"]:
        registry.objects.put(key, b"x" * 10, content_type="text/plain")
    waiting = await collect(registry, Retention(None, 1, grace_seconds=3600))
    assert (waiting.unnamed.count, waiting.uploads) == (0, 1)
    async with collector(registry.backend) as collecting:
        assert (await collecting.plan()).unnamed.count == 1
        removed = await collecting.collect(BY_HAND)
    assert (removed.unnamed.count, removed.unnamed.size) == (1, 10)
    assert set(registry.keys()) == {*foreign, *named}
    assert present(registry) >= {digest}


async def test_only_one_collects_at_a_time(registry: RunningRegistry) -> None:
    async with (
        open_pool(registry.backend.database_url, size=2, application_name="test") as pool,
        alone(pool, "registry gc") as mine,
    ):
        assert mine
        with pytest.raises(Unavailable, match="another registry is collecting"):
            await collect(registry)
        async with collector(registry.backend) as collecting:
            await collecting.collect_if_due(BY_HAND, interval_seconds=0)
    assert await registry.backend.fetch("SELECT FROM registry.upkeep") == []


async def test_schedule_collects_when_the_interval_is_over(registry: RunningRegistry) -> None:
    async with collector(registry.backend) as collecting:
        for number in range(2):
            await revisions(registry, 2 + number)
            await collecting.collect_if_due(BY_HAND, interval_seconds=3600)
            assert len(registry.keys("artifacts/")) == 1 + 2 * number  # the second time nothing was due


async def test_registry_collects_and_scrubs_regularly(backend: Backend) -> None:
    regularly = {"gc_interval_seconds": 0.1, "keep_revisions": 1, "scrub_interval_seconds": 0.1}
    async with running_registry(backend, **regularly) as registry:
        old, new = await revisions(registry, 2)
        for _ in range(2):
            await pass_time(registry, "100 days")
            async with asyncio.timeout(20):
                while len(marked := await backend.fetch(_MARKED_OR_COLLECTED)) == 0:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert [row["digest"] for row in marked] == [old]
        async with asyncio.timeout(20):
            while present(registry) != {new}:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        registry.objects.delete(registry.keys("artifacts/")[0])
        async with asyncio.timeout(20):
            while "artifact.quarantined" not in await registry.actions():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert (await backend.fetch("SELECT DISTINCT actor FROM audit.events WHERE action LIKE 'artifact.%'"))[0][0] == (
        "registry"
    )


_MARKED_OR_COLLECTED = """
    SELECT digest FROM registry.artifacts WHERE gc_marked_at IS NOT NULL OR collected_at IS NOT NULL
"""


def test_grace_must_be_longer_than_an_upload_may_take(backend: Backend) -> None:
    settings: dict[str, Any] = {**backend.settings, "upload_max_age_seconds": 7200}
    assert RegistrySettings(**settings).retention.grace_seconds == 14_400
    assert RegistrySettings(**settings, gc_grace_seconds=7201).retention.grace_seconds == 7201
    with pytest.raises(ValidationError, match="must be more than UPLOAD_MAX_AGE_SECONDS, 7200"):
        RegistrySettings(**settings, gc_grace_seconds=7200)


# --- dying in the middle ---------------------------------------------------------------------------------------------

PATIENT = Retention(keep_revisions=1, keep_used_days=1, grace_seconds=172_800)


async def due(registry: RunningRegistry) -> tuple[str, str]:
    """Two revisions, of which the older one is marked and has waited."""
    old, new = await revisions(registry, 2)
    await pass_time(registry, "3 days")
    await collect(registry, PATIENT)
    await pass_time(registry, "3 days")
    return old, new


async def claimed(registry: RunningRegistry) -> str:
    """What a collector leaves that is killed before it deletes the object: a claimed artifact."""
    old, _ = await due(registry)
    async with (
        open_pool(registry.backend.database_url, size=2, application_name="test") as pool,
        pool.acquire() as connection,
    ):
        assert await claim(connection, old, PATIENT) is not None
    return old


async def test_claimed_artifact_is_refused_and_the_next_collector_finishes_it(registry: RunningRegistry) -> None:
    old = await claimed(registry)
    assert (await registry.request("GET", f"/job-bundles/hello/resolve?reference={old}")).status == 410
    uses = await registry.request("POST", "/artifacts/uses", json={"digests": [old]})
    assert uses.json == {"unavailable": [old]}
    assert old in present(registry)
    assert [item.digest for item in (await collect(registry, PATIENT)).artifacts] == [old]
    await assert_in_agreement(registry)


async def test_claimed_artifact_can_be_published_again(registry: RunningRegistry) -> None:
    old = await claimed(registry)
    assert (await registry.publish(bundle(files={"n": "0"}), force="true", reason="back")).json["digest"] == old
    assert (await collect(registry, PATIENT)).artifacts == []
    assert (await registry.request("GET", f"/job-bundles/hello/resolve?reference={old}")).status == 200
    await assert_in_agreement(registry)


STEPS = {
    "marking": "SELECT FROM registry.artifacts FOR UPDATE",
    "claiming": "SELECT pg_advisory_xact_lock(hashtextextended('artifact ' || digest, 0)) FROM registry.artifacts",
    "recording, when the object is gone": "LOCK TABLE audit.events IN SHARE MODE",
}


@pytest.mark.parametrize("step", STEPS)
async def test_collector_killed_at_any_step_leaves_what_the_next_one_finishes(
    registry: RunningRegistry, step: str
) -> None:
    old, new = await due(registry)
    if step == "marking":
        await registry.backend.fetch("UPDATE registry.artifacts SET gc_marked_at = NULL")
    blocker = await asyncpg.connect(registry.backend.database_url)
    async with blocker.transaction():
        await blocker.execute(STEPS[step])
        process = await gc_process(registry.backend)
        await until_waiting(registry.backend)
        assert (old in present(registry)) is (step != "recording, when the object is gone")
        process.send_signal(signal.SIGKILL)
        await process.wait()
    await blocker.close()
    await until_gone(registry.backend)
    await collect(registry, PATIENT)
    await pass_time(registry, "3 days")
    await collect(registry, PATIENT)
    assert present(registry) == {new}
    assert (await registry.actions()).count("artifact.collected") == 1
    await assert_in_agreement(registry)


async def gc_process(backend: Backend) -> asyncio.subprocess.Process:
    """`python -m services.registry gc`, which keeps one revision of each version."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "services.registry", "gc"),
        env={
            **backend.environment("STOWAGE_REGISTRY_"),
            "STOWAGE_REGISTRY_KEEP_REVISIONS": "1",
            "STOWAGE_REGISTRY_KEEP_USED_DAYS": "1",
            "PATH": os.environ["PATH"],
        },
        stdout=asyncio.subprocess.DEVNULL,
    )


_SESSIONS = """
    SELECT FROM pg_stat_activity
    WHERE application_name = 'stowage-registry-upkeep' AND datname = current_database()
"""


async def until_waiting(backend: Backend) -> None:
    async with asyncio.timeout(20):
        while not await backend.fetch(f"{_SESSIONS} AND wait_event_type = 'Lock'"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def until_gone(backend: Backend) -> None:
    async with asyncio.timeout(20):
        while await backend.fetch(_SESSIONS):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


# --- all at once -----------------------------------------------------------------------------------------------------


async def test_publishing_replacing_and_collecting_at_once_ends_in_agreement(registry: RunningRegistry) -> None:
    """Without any grace: what is replaced may be collected in the next moment, and published again in the one after."""
    contents = [bundle(files={"n": str(number)}) for number in range(4)]
    done = asyncio.Event()
    collected = 0

    async def keep_collecting() -> None:
        nonlocal collected
        async with collector(registry.backend, Retention(1, 0, 0)) as collecting:
            while not done.is_set():
                collected += len((await collecting.collect(BY_HAND)).artifacts)

    async def publish(number: int) -> None:
        answer = await registry.publish(contents[number % 4], force="true", reason="again")
        assert answer.status in (200, 201)
        await registry.request(
            "POST", f"{VERSION}/rollback", json={"toDigest": answer.json["digest"], "reason": "back"}
        )
        found = await registry.request("GET", "/job-bundles/hello/resolve?reference=latest")
        assert found.status == 200

    working = asyncio.create_task(keep_collecting())
    chosen = random.Random(4)  # noqa: S311
    for _ in range(8):
        await asyncio.gather(*(publish(chosen.randrange(4)) for _ in range(6)))
    done.set()
    await working
    assert collected > 0
    await assert_in_agreement(registry)
    current = (await registry.request("GET", VERSION)).json
    downloaded = await registry.request("GET", f"{VERSION}/download?stream=true")
    assert f"sha256:{hashlib.sha256(downloaded.body).hexdigest()}" == current["digest"]


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Commands set up logging for a process of their own."""
    yield
    structlog.reset_defaults()


def command_environment(monkeypatch: pytest.MonkeyPatch, backend: Backend) -> None:
    """Let commands that run in this process work on this backend."""
    for name, value in backend.environment("STOWAGE_REGISTRY_").items():
        monkeypatch.setenv(name, value)


async def test_command_shows_what_goes_and_a_dry_run_changes_nothing(
    registry: RunningRegistry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = await due(registry)
    command_environment(monkeypatch, registry.backend)
    monkeypatch.setenv("STOWAGE_REGISTRY_KEEP_REVISIONS", "1")
    assert await asyncio.to_thread(main, ["gc", "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert f"{old}  to be collected" in planned
    assert "hello@1.0.0" in planned
    assert "policy: keep the last 1 revisions of each version" in planned
    assert present(registry) == {old, new}
    assert await asyncio.to_thread(main, ["gc"]) == 0
    assert f"{old}  collected" in capsys.readouterr().out
    assert present(registry) == {new}
