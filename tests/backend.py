"""What a test gets of the real servers: a database and a bucket of its own."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import asyncpg

from infra.local import servers
from infra.migrate import migrate
from infra.provision.server import client_of, make_bucket
from libs.common.objects import ObjectStore
from libs.common.settings import ServiceSettings
from tests.servers import Servers, chosen_servers, until_up

_START_SECONDS = 60.0
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Backend:
    """A database and a bucket that nobody else uses."""

    database_url: str
    s3_endpoint: str
    access_key: str
    secret_key: str
    bucket: str

    @property
    def settings(self) -> dict[str, str]:
        """The settings of a service that name this backend."""
        return {
            "database_url": self.database_url,
            "s3_endpoint": self.s3_endpoint,
            "s3_access_key": self.access_key,
            "s3_secret_key": self.secret_key,
            "s3_bucket": self.bucket,
        }

    def environment(self, prefix: str) -> dict[str, str]:
        """The same as variables for a service in a process of its own; `prefix` is for example STOWAGE_REGISTRY_."""
        return {f"{prefix}{name.upper()}": value for name, value in self.settings.items()}

    def objects(self) -> ObjectStore:
        """The bucket, to look into."""
        return ObjectStore(ServiceSettings(port=0, **self.settings))  # type: ignore[arg-type]

    def keys(self, prefix: str = "") -> list[str]:
        """Every key in the bucket that begins with `prefix`."""
        store = self.objects()
        try:
            return list(store.list(prefix))
        finally:
            store.close()

    async def fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        """Rows of a query, to look into the database."""
        connection = await asyncpg.connect(self.database_url)
        try:
            rows: list[asyncpg.Record] = await connection.fetch(query, *arguments)
            return rows
        finally:
            await connection.close()


@contextlib.contextmanager
def running_servers(*, s3_address: str = "127.0.0.1") -> Iterator[Servers]:
    """The servers of this session, with the template database that tests get copies of.

    An embedded S3 server listens on `s3_address`.
    """
    with chosen_servers(s3_address) as running:
        asyncio.run(_make_template(running))
        yield running
        asyncio.run(_drop_database(running, running.template))


async def _make_template(running: Servers) -> None:
    await until_up(running.maintenance_url)
    await migrate(await servers.create_database(running.maintenance_url, running.template))


@contextlib.asynccontextmanager
async def fresh_backend(running: Servers) -> AsyncIterator[Backend]:
    """A copy of the template database and an empty bucket, dropped afterwards."""
    name = f"test-{running.token}-{next(_numbers)}"
    url = await servers.create_database(running.maintenance_url, name, template=running.template)
    await asyncio.to_thread(make_bucket, running.s3(name), wait_seconds=_START_SECONDS)
    try:
        yield Backend(url, running.s3_endpoint, running.access_key, running.secret_key, name)
    finally:
        await _drop_database(running, name)
        await asyncio.to_thread(_drop_bucket, running, name)


async def _drop_database(running: Servers, name: str) -> None:
    connection = await asyncpg.connect(running.maintenance_url)
    try:
        await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        await connection.close()


def _drop_bucket(running: Servers, name: str) -> None:
    """Delete a bucket: each that was written to holds volumes of the S3 server, which has a few hundred in all."""
    server = running.s3(name)
    client = client_of(server, server.administrator)
    for item in client.list_objects(name, recursive=True):
        client.remove_object(name, item.object_name)
    client.remove_bucket(name)
