"""What a run costs, and whom: `python -m benchmarks.costs`.

The runner is a process of its own, on servers of its own; its requests to S3 go through a proxy that counts them. Runs
go two at a time, confined by Landlock as in a pod: then the kernel accounts whatever jobs use to the runner. Counted
are CPU seconds of each process and all that it started, memory, requests, rows, and bytes in the database. The
registry shares a process with the client that asks for the runs.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import psutil
import structlog

from benchmarks.report import machine
from libs.common.client import RunnerClient
from libs.common.models import RunRequest, RunState
from tests.backend import Backend
from tests.chaos.servers import own_servers
from tests.ports import free_port
from tests.registry.running import RunningRegistry, make_token, running_registry
from tests.runner.bundles import node, publish, python

_CONCURRENCY = 2
_SETTLE_SECONDS = 3.0
_REST_SECONDS = 20.0
_PIECE_BYTES = 64 * 1024
_REQUEST = re.compile(rb"^(GET|PUT|POST|HEAD|DELETE) /\S* HTTP/1\.1\r\n", re.MULTILINE)

_SOMETHING = """
    def handler(context):
        for number in range(100):
            context.logger(f"line {number}")
        with open(context.output_dir + "/out.bin", "wb") as file:
            file.write(bytes(100_000))
        return 1
"""
_BUNDLES = {
    "nothing, in Node.js": node("export const handler = () => 1", slug="empty-node"),
    "nothing, in Python": python("def handler(context):\n    return 1", slug="empty-python"),
    "100 lines, an output of 100 kB": python(_SOMETHING, slug="chatty"),
}
_SLUGS = dict(zip(_BUNDLES, ("empty-node", "empty-python", "chatty"), strict=True))


class CountingProxy:
    """Forwards connections to a server, and counts the requests that are sent over them."""

    def __init__(self, target: str) -> None:
        place = urlsplit(target)
        self._target = (str(place.hostname), int(place.port or 80))
        self.requests: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """The URL that leads through it, for as long as the context is open."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(*self._target)
        await asyncio.gather(
            self._forward(reader, there_writer, count=True), self._forward(there_reader, writer, count=False)
        )

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, count: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(_PIECE_BYTES):
                if count:
                    self.requests.update(method.decode() for method in _REQUEST.findall(piece))
                writer.write(piece)
                await writer.drain()
        writer.close()


@dataclass(frozen=True)
class Costs:
    """What was used until some moment."""

    cpu: dict[str, float]
    requests: Counter[str]
    rows: int
    database_bytes: int
    objects: int


@dataclass
class Measured:
    """All that is measured."""

    processes: dict[str, psutil.Process]
    proxy: CountingProxy
    backend: Backend

    async def now(self) -> Costs:
        """What was used until now, when everything has settled."""
        await asyncio.sleep(_SETTLE_SECONDS)
        connection = await asyncpg.connect(self.backend.database_url)
        try:
            await connection.execute("SELECT pg_stat_force_next_flush()")
            rows = await connection.fetchval("SELECT sum(n_tup_ins)::bigint FROM pg_stat_user_tables")
            size = await connection.fetchval("SELECT pg_database_size(current_database())")
        finally:
            await connection.close()
        cpu = {name: _cpu_seconds(process) for name, process in self.processes.items()}
        objects = len(await asyncio.to_thread(self.backend.keys))
        return Costs(cpu, self.proxy.requests.copy(), rows, size, objects)


def _cpu_seconds(process: psutil.Process) -> float:
    """Of a process, what it started and has ended, and what it started and goes on."""
    own = process.cpu_times()
    if process.pid == os.getpid():  # what this process started is counted by itself
        return float(own.user + own.system)
    total = own.user + own.system + own.children_user + own.children_system
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return float(total)


@contextlib.asynccontextmanager
async def _runner(backend: Backend, registry: RunningRegistry, endpoint: str) -> AsyncIterator[tuple[int, str]]:
    """A runner in a process of its own: its process id and its URL."""
    port = free_port()
    environment = {
        **backend.environment("STOWAGE_RUNNER_"),
        "STOWAGE_RUNNER_S3_ENDPOINT": endpoint,
        "STOWAGE_RUNNER_PORT": str(port),
        "STOWAGE_RUNNER_REGISTRY_URL": registry.url,
        "STOWAGE_RUNNER_SERVICE_TOKEN": await make_token(backend, "runner", "bundles:read"),
        "STOWAGE_RUNNER_CONCURRENCY": str(_CONCURRENCY),
        "STOWAGE_RUNNER_SANDBOX": "landlock",
        "PATH": os.environ["PATH"],
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.runner", "serve"),
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process.pid, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def _until_ready(url: str) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(60):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}/readyz") as answer:
                    if answer.status == HTTPStatus.OK:
                        return
            await asyncio.sleep(0.1)


async def _postmaster(backend: Backend) -> psutil.Process:
    connection = await asyncpg.connect(backend.database_url)
    try:
        found: psutil.Process | None = psutil.Process(await connection.fetchval("SELECT pg_backend_pid()")).parent()
    finally:
        await connection.close()
    if found is None:
        raise RuntimeError("PostgreSQL is gone")
    return found


async def _use(client: RunnerClient, slug: str, runs: int) -> None:
    """Have a bundle run so often."""
    waiting = [(await client.start_run(RunRequest(bundle=f"{slug}@latest"))).id for _ in range(runs)]
    for run_id in waiting:
        while not (run := await client.run(run_id)).state.final:  # noqa: ASYNC110  # nothing to wait on but to ask
            await asyncio.sleep(0.2)
        if run.state is not RunState.SUCCEEDED:
            raise RuntimeError(f"{run_id} ended as {run.state}: {run.error}")


def _show(name: str, before: Costs, after: Costs, runs: int) -> None:
    cpu = ", ".join(f"{part} {(after.cpu[part] - before.cpu[part]) / runs * 1000:.0f}" for part in after.cpu)
    requests = ", ".join(
        f"{count / runs:.1f} {method}" for method, count in sorted((after.requests - before.requests).items())
    )
    print(
        f"{name:32} CPU ms a run: {cpu}\n"
        f"{'':32} S3: {requests}; {(after.objects - before.objects) / runs:.1f} objects\n"
        f"{'':32} PostgreSQL: {(after.rows - before.rows) / runs:.1f} rows inserted, "
        f"{(after.database_bytes - before.database_bytes) / runs / 1000:.1f} kB"
    )


async def _measure(runs: int) -> None:
    async with own_servers() as servers, running_registry(servers.backend) as registry:
        proxy = CountingProxy(servers.backend.s3_endpoint)
        async with proxy.listening() as endpoint, _runner(servers.backend, registry, endpoint) as (pid, url):
            await _until_ready(url)
            (weed,) = (child for child in psutil.Process().children() if child.name() == "weed")
            processes = {
                "runner": psutil.Process(pid),
                "registry and client": psutil.Process(),
                "PostgreSQL": await _postmaster(servers.backend),
                "S3": weed,
            }
            measured = Measured(processes, proxy, servers.backend)
            async with RunnerClient(url, registry.token) as client:
                for name, body in _BUNDLES.items():
                    await publish(registry, body, _SLUGS[name])
                    await _use(client, _SLUGS[name], 10)  # the first only warm up
                    before = await measured.now()
                    await _use(client, _SLUGS[name], runs)
                    _show(name, before, await measured.now(), runs)
            await _show_rest(measured)


async def _show_rest(measured: Measured) -> None:
    """What everything takes while nothing runs."""
    before, began = await measured.now(), time.monotonic()
    await asyncio.sleep(_REST_SECONDS)
    after, seconds = await measured.now(), time.monotonic() - began
    cpu = ", ".join(f"{part} {(after.cpu[part] - used) / seconds * 1000:.0f}" for part, used in before.cpu.items())
    memory = ", ".join(f"{part} {_rss_bytes(process) / 1e6:.0f}" for part, process in measured.processes.items())
    print(f"at rest, CPU ms a second: {cpu}\nmemory (RSS), MB: {memory}")


def _rss_bytes(process: psutil.Process) -> int:
    found: int = process.memory_info().rss
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=300)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    print(machine())
    asyncio.run(_measure(options.runs))


if __name__ == "__main__":
    main()
