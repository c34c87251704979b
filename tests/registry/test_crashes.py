"""Whatever dies in the middle: rows never name objects that are not there, and what is left can be swept."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

import asyncpg
import pytest

from services.registry.sweep import sweep
from tests.backend import Backend
from tests.registry.bundles import bundle, digest_of
from tests.registry.running import NOTHING, RunningRegistry, make_token, registry_process, running_registry
from tests.registry.test_races import assert_in_agreement

BIG = bundle(files={"data": os.urandom(20 * 1024 * 1024)})


@contextlib.asynccontextmanager
async def commit_held_up(backend: Backend) -> AsyncIterator[asyncpg.Connection]:
    """While open, no first publication of `hello` gets past its first row; its object is placed by then."""
    connection = await asyncpg.connect(backend.database_url)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("INSERT INTO registry.bundles (slug, created_by) VALUES ('hello', 'nobody')")
    try:
        yield connection
    finally:
        if not connection.is_closed():
            await transaction.rollback()
            await connection.close()


async def until_held_up(backend: Backend) -> int:
    """The process id of the server's backend that waits for the row."""
    async with asyncio.timeout(20):
        while True:
            found = await backend.fetch(
                "SELECT pid FROM pg_stat_activity WHERE application_name = 'stowage-registry' "
                "AND datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%registry.bundles%'"
            )
            if found:
                return int(found[0]["pid"])
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def upload_begun(
    port: int, token: str, body: bytes, sent: int, query: str = ""
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection over which the first `sent` bytes of a publication went; closed at the end, if not before."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(
            f"PUT /job-bundles/hello/versions/1.0.0{query} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        writer.write(body[:sent])
        await writer.drain()
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize("declares", [False, True], ids=["", "declared"])
async def test_registry_killed_in_mid_upload_leaves_only_what_the_sweep_removes(
    backend: Backend, declares: bool
) -> None:
    token = await make_token(backend, "admin", "admin")
    store = backend.objects()
    try:
        async with (
            registry_process(backend) as (process, port),
            upload_begun(port, token, BIG, len(BIG) - 10, f"?digest={digest_of(BIG)}" if declares else ""),
            asyncio.timeout(20),
        ):
            while not store._client.list_multipart_uploads(Bucket=store.bucket).get("Uploads"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            await process.wait()
        assert sweep(store, max_age_seconds=3600) == 0
        assert sweep(store, max_age_seconds=0) == 1
    finally:
        store.close()
    async with running_registry(backend) as registry:
        assert await registry.residue() == NOTHING
        assert (await registry.publish(BIG)).status == 201


async def test_registry_killed_before_the_commit_can_be_published_to_again(backend: Backend) -> None:
    token = await make_token(backend, "admin", "admin")
    data = bundle()
    async with (
        commit_held_up(backend),
        registry_process(backend) as (process, port),
        upload_begun(port, token, data, len(data)),
    ):
        await until_held_up(backend)
        assert len(backend.keys("artifacts/")) == 1
        process.send_signal(signal.SIGKILL)
        await process.wait()
    async with running_registry(backend) as registry:
        sweep(registry.objects, max_age_seconds=0)
        assert (await registry.residue())["rows"] == NOTHING["rows"]
        assert (await registry.publish(data)).status == 201
        await assert_in_agreement(registry)


async def test_database_that_drops_the_commit_leaves_nothing(registry: RunningRegistry) -> None:
    async with commit_held_up(registry.backend):
        publishing = asyncio.create_task(registry.publish(bundle()))
        pid = await until_held_up(registry.backend)
        assert len(registry.keys("artifacts/")) == 1
        await registry.backend.fetch("SELECT pg_terminate_backend($1)", pid)
        answer = await publishing
    assert (answer.status, answer.json["type"]) == (503, "urn:stowage:problem:database-unavailable")
    assert await registry.residue() == NOTHING
    assert (await registry.publish(bundle())).status == 201


async def test_client_that_leaves_during_the_commit_changes_nothing_about_it(registry: RunningRegistry) -> None:
    data = bundle()
    async with commit_held_up(registry.backend):
        async with upload_begun(registry.port, registry.token, data, len(data)):
            await until_held_up(registry.backend)
        await asyncio.sleep(0.2)
    await registry.settled()
    await assert_in_agreement(registry)
    assert (await registry.request("GET", "/job-bundles/hello/versions/1.0.0")).status == 200


async def test_database_connections_dying_all_the_time_never_leave_a_row_without_its_object(backend: Backend) -> None:
    async with running_registry(backend) as registry:
        stop = asyncio.Event()

        async def chaos() -> None:
            connection = await asyncpg.connect(backend.database_url)
            while not stop.is_set():
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = 'stowage-registry' AND datname = current_database() AND random() < 0.3"
                )
                await asyncio.sleep(0.03)
            await connection.close()

        dying = asyncio.create_task(chaos())
        statuses: list[int] = []
        for _ in range(4):
            answers = await asyncio.gather(
                *(registry.publish(bundle(files={"n": str(n)}), force="true", reason="r") for n in range(10))
            )
            statuses += [answer.status for answer in answers]
        stop.set()
        await dying
        assert set(statuses) <= {200, 201, 503}
        assert 503 in statuses
        rows = await backend.fetch("SELECT object_key FROM registry.artifacts")
        assert {row["object_key"] for row in rows} <= set(registry.keys("artifacts/"))
        assert registry.keys("uploads/") == []
        assert (await registry.publish(bundle(files={"n": "last"}), force="true", reason="r")).status in (200, 201)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_registry_asked_to_stop_lets_an_upload_finish(backend: Backend, number: signal.Signals) -> None:
    token = await make_token(backend, "admin", "admin")
    async with (
        registry_process(backend) as (process, port),
        upload_begun(port, token, BIG, 10_000_000) as (reader, writer),
    ):
        await asyncio.sleep(0.5)
        process.send_signal(number)
        await asyncio.sleep(0.5)
        with pytest.raises(OSError):  # it accepts nothing new
            await asyncio.open_connection("127.0.0.1", port)
        writer.write(BIG[10_000_000:])
        assert b" 201 " in await reader.readline()
        writer.close()
        assert await process.wait() == 0


async def test_sweep_touches_nothing_but_old_uploads_of_ours(registry: RunningRegistry) -> None:
    await registry.publish(bundle())
    kept = ["artifacts/sha256/ab/x.tgz", "uploads/readme.txt", "uploads/upl_nonsense", "outputs/upl_000000000001x/a"]
    for key in [*kept, "uploads/upl_000000000001abcdefabcdefabcd"]:
        registry.objects.put(key, b"x", content_type="text/plain")
    registry.objects.upload("uploads/upl_000000000002abcdefabcdefabcd", content_type="text/plain").write(b"x")
    recent = registry.objects.upload("uploads/upl_ffffffffffffabcdefabcdefabcd", content_type="text/plain")
    recent.write(b"x")
    before = registry.keys("artifacts/")
    assert sweep(registry.objects, max_age_seconds=3600) == 2
    recent.complete()
    assert set(registry.keys()) == {*kept, *before, recent.key}
