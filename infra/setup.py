"""Make PostgreSQL and the S3 server ready for the services: `python -m infra.setup DIRECTORY`, the job of Compose.

Makes a role and a database, brings the schema up to date, makes the bucket and a user for each service, and the first
tokens. What the services need to know is then in files below DIRECTORY, a part for each (infra/credentials.py), so that
none of them has an administrator's credentials. Safe to run again, and waits for servers that are not up yet.

Reads STOWAGE_DATABASE_URL (an administrator's, of the maintenance database; PGPASSWORD where it has no password),
STOWAGE_S3_ENDPOINT, STOWAGE_S3_ACCESS_KEY and STOWAGE_S3_SECRET_KEY (an administrator's), STOWAGE_S3_BUCKET,
STOWAGE_S3_REGION; each but PGPASSWORD may be a file, …_FILE.
"""

import argparse
import asyncio
import sys
import time
from pathlib import Path

import asyncpg

from infra.credentials import SERVICES, CredentialFiles
from infra.migrate import MigrationError, migrate
from infra.provision.server import ProvisionError, Server, make_bucket
from infra.provision.users import ensure_users
from infra.provision.variables import administered_server
from infra.tokens import FIRST_TOKENS
from libs.common.audit import Origin
from libs.common.auth import parse_scopes
from libs.common.database import open_pool
from libs.common.errors import StowageError
from libs.common.settings import SettingsError, read_variables
from services.registry.notes import InvalidNote, read_or_make_key
from services.registry.tokens import read_or_make_file, register

_ROLE = _DATABASE = "stowage"
_WAIT_SECONDS = 60.0
_DATABASE_URL = "STOWAGE_DATABASE_URL"


def main() -> int:
    """Run the command; 0, 1 when it could not be done, 2 when the variables are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.setup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, metavar="DIRECTORY", help="where the services' credentials are kept")
    directory = parser.parse_args().directory
    try:
        database_url = read_variables([_DATABASE_URL]).get(_DATABASE_URL)
        if not database_url:
            raise SettingsError(f"{_DATABASE_URL} must be set, or a file that {_DATABASE_URL}_FILE names")
        server = administered_server()
        files = CredentialFiles(directory)
        asyncio.run(_set_up_database(database_url, files))
        _set_up_bucket(server, files)
        read_or_make_key(files.audit_key)
    except SettingsError as error:
        sys.stderr.write(f"setup: {error}\n")
        return 2
    except (
        ProvisionError,
        MigrationError,
        StowageError,
        InvalidNote,
        OSError,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
    ) as error:
        sys.stderr.write(f"setup: {error}\n")
        return 1
    sys.stdout.write("all is ready for the services\n")
    return 0


async def _set_up_database(administrator_url: str, files: CredentialFiles) -> None:
    urls = [files.database_url(service, administrator_url, _ROLE, _DATABASE) for service in SERVICES]
    administrator = await _connect(administrator_url)
    try:
        await _ensure_role_and_database(administrator, urls[0])
    finally:
        await administrator.close()
    await migrate(urls[0])
    _say(f"database {_DATABASE}: its schema is up to date")
    async with open_pool(urls[0], size=2, application_name="stowage-setup") as pool, pool.acquire() as connection:
        for subject, scopes in FIRST_TOKENS.items():
            secret = await read_or_make_file(files.token(subject))
            await register(connection, secret, subject, parse_scopes(scopes), Origin(actor="command-line:setup"))
            _say(f"token of {subject}: {', '.join(scopes)}")


async def _connect(url: str) -> asyncpg.Connection:
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            return await asyncpg.connect(url)
        except (OSError, asyncpg.CannotConnectNowError):
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.5)


async def _ensure_role_and_database(administrator: asyncpg.Connection, url: str) -> None:
    password = url.partition(f"{_ROLE}:")[2].partition("@")[0]
    there = await administrator.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", _ROLE)
    statement = await administrator.fetchval(
        "SELECT format($1 || ' ROLE %I LOGIN PASSWORD %L', $2::text, $3::text)",
        "ALTER" if there else "CREATE",
        _ROLE,
        password,
    )
    await administrator.execute(statement)
    if not await administrator.fetchval("SELECT true FROM pg_database WHERE datname = $1", _DATABASE):
        await administrator.execute(f'CREATE DATABASE "{_DATABASE}" OWNER "{_ROLE}"')


def _set_up_bucket(server: Server, files: CredentialFiles) -> None:
    make_bucket(server, wait_seconds=_WAIT_SECONDS)
    ensure_users(server, {service: files.s3(service) for service in SERVICES})
    _say(f"bucket {server.bucket}: there, with a user for each service")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
