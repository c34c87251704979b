"""The schema, the audit trail's promise, and the journal."""

import asyncio

import asyncpg
import pytest

from libs.common import audit
from libs.common.database import Notifications, open_pool
from libs.common.identifiers import version_sort_key
from libs.common.journal import Journal, JournalLimits
from tests.backend import Backend


@pytest.mark.parametrize(
    "statement",
    ["UPDATE audit.events SET actor = 'nobody'", "DELETE FROM audit.events", "TRUNCATE audit.events"],
)
async def test_audit_trail_refuses_change_even_by_the_owner_of_the_database(backend: Backend, statement: str) -> None:
    async with open_pool(backend.database_url, size=2, application_name="test") as pool, pool.acquire() as connection:
        await audit.append(connection, audit.Origin("alice"), audit.Event("bundle.published", "b@1.0.0"))
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
            await connection.execute(statement)
        assert await connection.fetchval("SELECT actor FROM audit.events") == "alice"


async def test_an_event_of_a_rolled_back_change_is_gone_with_it(backend: Backend) -> None:
    async with open_pool(backend.database_url, size=2, application_name="test") as pool, pool.acquire() as connection:
        with pytest.raises(RuntimeError):
            async with connection.transaction():
                await audit.append(connection, audit.Origin("alice"), audit.Event("bundle.published", "b@1.0.0"))
                raise RuntimeError
        assert await connection.fetchval("SELECT count(*) FROM audit.events") == 0
        assert await connection.fetchval("SELECT count(*) FROM audit.unsealed") == 0


async def test_journal_is_followed_across_processes_in_order(backend: Backend) -> None:
    notifications = Notifications(backend.database_url, "runner_journal")
    async with open_pool(backend.database_url, size=4, application_name="test") as pool, notifications.listening():
        journal = Journal(pool, "runner", notifications)
        seen: list[str] = []

        async def follow() -> None:
            after = 0
            async with journal.changes("run_1") as changes:
                while len(seen) < 1500:
                    async for page in journal.pages("run_1", after=after):
                        seen.extend(entry.message for entry in page)
                        after = page[-1].seq
                    if len(seen) < 1500:
                        await changes.wait()

        follower = asyncio.create_task(follow())
        async with journal.writing("run_1") as writer:
            for number in range(1500):
                writer.write("stdout", f"line {number}\x00")
        async with asyncio.timeout(10):
            await follower
        assert seen == [f"line {number}\ufffd" for number in range(1500)]


async def test_journal_beyond_its_limit_counts_what_it_drops(backend: Backend) -> None:
    notifications = Notifications(backend.database_url, "runner_journal")
    async with open_pool(backend.database_url, size=4, application_name="test") as pool:
        journal = Journal(pool, "runner", notifications)
        async with journal.writing("run_1", JournalLimits(max_bytes=1000)) as writer:
            for _ in range(100):
                writer.write("stdout", "x" * 36)
        entries = await journal.read("run_1")
        assert [entry.message for entry in entries][-1] == "90 more lines were dropped: the log is full."
        assert len(entries) == 11


def test_sort_key_orders_as_semantic_versioning_says() -> None:
    ordered = [
        "0.9.0", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11",
        "1.0.0-rc.1", "1.0.0", "1.0.1", "1.2.0", "1.10.0", "2.0.0-0", "2.0.0", "10.0.0",
    ]  # fmt: skip
    mixed = ordered[7:] + ordered[:7]
    assert sorted(mixed, key=lambda version: version_sort_key(version).encode()) == ordered
