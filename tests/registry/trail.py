"""An audit trail to look into and to tamper with: events without a registry, and what their owner can do to them."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from libs.common import audit
from libs.common.database import Pool, open_pool
from libs.common.objects import ObjectStore
from services.registry.checkpoints import Checkpoints
from services.registry.notes import PublicKey, Signer, read_or_make_key
from services.registry.sealing import seal
from tests.backend import Backend

ORIGIN = "stowage/test"
TABLES = ("events", "leaves", "subtrees", "checkpoints")


@dataclass(frozen=True)
class Trail:
    """The audit trail of a backend, sealed and signed by hand."""

    backend: Backend
    pool: Pool
    objects: ObjectStore
    signer: Signer

    async def append(self, count: int = 1, *, actor: str = "alice", subject: str = "hello@1.0.{}") -> list[int]:
        """Append events, each in a transaction of its own; their ids."""
        async with self.pool.acquire() as connection:
            return [
                await audit.append(
                    connection,
                    audit.Origin(actor, f"req_{number}", "127.0.0.1"),
                    audit.Event("version.published", subject.format(number), detail={"revision": number, "ö": [1.5]}),
                )
                for number in range(count)
            ]

    def checkpoints(self, signer: Signer | None = None, *earlier: PublicKey) -> Checkpoints:
        """As a registry that was just started has them."""
        return Checkpoints(self.pool, self.objects, signer or self.signer, interval_seconds=1e-6, earlier=earlier)

    async def sign(self) -> None:
        """Seal and sign what there is."""
        await seal(self.pool)
        await self.checkpoints().sign_if_due()

    async def grow(self, *counts: int) -> list[int]:
        """Append so many events each time, and sign; the ids of all."""
        identifiers = []
        for count in counts:
            identifiers += await self.append(count)
            await self.sign()
        return identifiers

    async def as_owner(self, *statements: str) -> None:
        """What nobody but the owner of the database can do, with the triggers out of the way."""
        async with owner(self.backend) as connection:
            for statement in statements:
                await connection.execute(statement)


@contextlib.asynccontextmanager
async def owner(backend: Backend) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection of the database's owner while no trigger fires."""
    connection = await asyncpg.connect(backend.database_url)
    try:
        async with connection.transaction():
            for table in TABLES:
                await connection.execute(f"ALTER TABLE audit.{table} DISABLE TRIGGER USER")
            yield connection
            for table in TABLES:
                await connection.execute(f"ALTER TABLE audit.{table} ENABLE TRIGGER USER")
    finally:
        await connection.close()


@contextlib.contextmanager
def made_key(directory: Path, origin: str = ORIGIN) -> Iterator[Signer]:
    """A key in a new file."""
    path = directory / "audit.pem"
    read_or_make_key(path)
    yield Signer.from_file(origin, path)


@contextlib.asynccontextmanager
async def opened_trail(backend: Backend, directory: Path) -> AsyncIterator[Trail]:
    """The trail of a backend, with a key in `directory`."""
    objects = backend.objects()
    try:
        with made_key(directory) as signer:
            async with open_pool(backend.database_url, size=8, application_name="test") as pool:
                yield Trail(backend, pool, objects, signer)
    finally:
        objects.close()
