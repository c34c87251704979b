"""Bringing a database to the present schema, and waiting until somebody has done so."""

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from infra.local.servers import create_database
from infra.migrate import MigrationError, migrate, wait_until_migrated
from tests.backend import Backend
from tests.servers import Servers

_PATIENCE_SECONDS = 120


@pytest.fixture
async def absent(servers: Servers) -> AsyncIterator[str]:
    """The name of a database that is not there yet, and is not there afterwards."""
    name = f"absent-{secrets.token_hex(4)}"
    yield name
    connection = await asyncpg.connect(servers.maintenance_url)
    try:
        await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    finally:
        await connection.close()


async def test_migrating_again_changes_nothing(backend: Backend) -> None:
    await migrate(backend.database_url)
    rows = await backend.fetch("SELECT count(*) AS tables FROM pg_tables WHERE schemaname IN ('registry', 'runner')")
    assert rows[0]["tables"] > 10


async def test_who_waits_is_told_what_is_missing(servers: Servers, absent: str) -> None:
    url = await create_database(servers.maintenance_url, absent)
    with pytest.raises(MigrationError, match=r"migrations are pending, the first is 20261101000000.*infra\.migrate"):
        await wait_until_migrated(url, 0)


async def test_a_database_that_is_not_there_is_waited_for(servers: Servers, absent: str) -> None:
    url = servers.maintenance_url.replace("/postgres?", f"/{absent}?")
    with pytest.raises(MigrationError, match=f"can't be asked: .*{absent}"):
        await wait_until_migrated(url, 0)


async def test_waiting_ends_when_somebody_else_has_migrated(servers: Servers, absent: str) -> None:
    url = servers.maintenance_url.replace("/postgres?", f"/{absent}?")
    waiting = asyncio.create_task(wait_until_migrated(url, _PATIENCE_SECONDS))
    await migrate(await create_database(servers.maintenance_url, absent))
    await waiting


async def test_a_migration_under_way_is_waited_for(backend: Backend) -> None:
    await wait_until_migrated(backend.database_url, 0)
    holder = await asyncpg.connect(backend.database_url)
    try:
        await holder.execute("SELECT pg_advisory_lock($1)", 7101_7102_7103)
        with pytest.raises(MigrationError, match="somebody is migrating it"):
            await wait_until_migrated(backend.database_url, 0)
    finally:
        await holder.close()
    await wait_until_migrated(backend.database_url, _PATIENCE_SECONDS)


async def test_a_url_that_can_not_be_used_is_refused_with_the_reason(tmp_path: Path) -> None:
    """No certificate authority is where asyncpg looks for one."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "infra.migrate", "--wait", "1"),
        cwd=Path(__file__).resolve().parents[2],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "STOWAGE_DATABASE_URL": "postgresql://stowage@127.0.0.1:1/stowage?sslmode=verify-full",
        },
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    assert process.returncode == 1
    assert said.decode().startswith("migration failed: ")
    assert "root.crt" in said.decode()
    assert "Traceback" not in said.decode()
