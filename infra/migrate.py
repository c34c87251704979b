"""Bring a database to the present schema: `python -m infra.migrate`, with STOWAGE_DATABASE_URL (or …_FILE) set.

Our tables by dbmate from `infra/migrations`, the queue's by pgqueuer, which owns their shape. Safe to run again, and
by several at once. With `--wait SECONDS` nothing is changed: it ends as soon as somebody else has done it.
"""

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from libs.common.queue import queue_queries
from libs.common.settings import SettingsError, read_variables

_DATABASE_URL = "STOWAGE_DATABASE_URL"
_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 7101_7102_7103
_POLL_SECONDS = 0.5

_BEGUN = "SELECT to_regclass('schema_migrations') IS NOT NULL"
_APPLIED = "SELECT version FROM schema_migrations"


class MigrationError(Exception):
    """The schema could not be brought up to date; the message is dbmate's."""


def _run_dbmate(database_url: str) -> None:
    search = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", "")))
    dbmate = shutil.which("dbmate", path=search)
    if dbmate is None:
        raise MigrationError("dbmate is not installed; it is part of requirements/registry.txt")
    parts = urlsplit(database_url)
    query = f"{parts.query}&sslmode=disable" if "sslmode" not in parts.query else parts.query
    finished = subprocess.run(
        [dbmate, "--migrations-dir", str(_MIGRATIONS), "--no-dump-schema", "up"],
        env={"DATABASE_URL": parts._replace(query=query).geturl(), "PATH": search},
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode != 0:
        raise MigrationError((finished.stderr or finished.stdout).strip())


async def migrate(database_url: str) -> None:
    """Bring the database to the present schema, or raise MigrationError and leave it as far as it got."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
        await asyncio.to_thread(_run_dbmate, database_url)
        queries = queue_queries(connection)
        if await queries.schema_is_installed():
            await queries.upgrade()
        else:
            await queries.install(create_schema=False)
    finally:
        await connection.close()


async def wait_until_migrated(database_url: str, seconds: float) -> None:
    """Return when the database has every migration that is known here, and nobody is at work on it.

    One that is newer is fine. MigrationError with what is missing, if it is not so within `seconds`; a database that
    can't be reached may still come.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        try:
            missing = await _what_is_missing(database_url)
        except (OSError, asyncpg.PostgresError) as error:
            missing = f"the database can't be asked: {str(error) or type(error).__name__}"
        if missing is None:
            return
        if loop.time() >= deadline:
            raise MigrationError(f"the schema is not there after {seconds:g} seconds: {missing}")
        await asyncio.sleep(_POLL_SECONDS)


async def _what_is_missing(database_url: str) -> str | None:
    connection = await asyncpg.connect(database_url)
    try:
        if not await connection.fetchval("SELECT pg_try_advisory_lock_shared($1)", _LOCK):
            return "somebody is migrating it"
        begun = await connection.fetchval(_BEGUN)  # asked first, since a server logs what fails
        applied = {row["version"] for row in await connection.fetch(_APPLIED)} if begun else set()
        pending = sorted({path.name.partition("_")[0] for path in _MIGRATIONS.glob("*.sql")} - applied)
        if pending:
            return f"{len(pending)} migrations are pending, the first is {pending[0]}. Run python -m infra.migrate."
        if not await queue_queries(connection).schema_is_installed():
            return "the queue's tables are missing. Run python -m infra.migrate."
        return None
    finally:
        await connection.close()


def main() -> int:
    """Migrate what STOWAGE_DATABASE_URL names; 0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(prog="python -m infra.migrate", description="Bring a database to the schema.")
    parser.add_argument(
        "--wait", type=float, metavar="SECONDS", help="change nothing, but wait so long until somebody else has done it"
    )
    wait_seconds: float | None = parser.parse_args().wait
    try:
        database_url = read_variables([_DATABASE_URL]).get(_DATABASE_URL)
        if not database_url:
            raise SettingsError(f"{_DATABASE_URL} is not set")
        asyncio.run(migrate(database_url) if wait_seconds is None else wait_until_migrated(database_url, wait_seconds))
    except (SettingsError, MigrationError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        sys.stderr.write(f"migration failed: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
