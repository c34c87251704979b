"""What the audit trail costs, each pair measured in turn: `python -m benchmarks.audit`.

- Publishing by eight writers, with events that are written, sealed and signed, against a registry that keeps no trail:
  time, and CPU time of registry and PostgreSQL until the last event is sealed.
- Pages of `GET /audit` of a million events against those of a thousand, first and deep, with every kind of filter; and
  which indexes PostgreSQL took for them.
- Sealing, proofs, and `audit-verify` of so many events: time, and memory against a tenth of them.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from benchmarks.processes import cpu_seconds, cpu_seconds_of_family, parent_of
from benchmarks.report import compare, machine, percentile
from libs.common.cursors import encode_cursor
from libs.common.database import open_pool
from services.registry.checkpoints import Checkpoints
from services.registry.notes import Signer, read_or_make_key
from services.registry.sealing import seal
from services.registry.store import trail
from tests.backend import Backend, fresh_backend, running_servers
from tests.registry.bundles import bundle
from tests.registry.running import make_token, registry_process
from tests.servers import Servers

_WRITERS = 8
_FEW = 1000
_NEVER = 3600
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# An event a second until now, of $2 bundles with $3 versions each: nine tenths by a builder (in the first half by an
# older one), the others by $4 people.
_FILL = """
    INSERT INTO audit.events (at, actor, action, subject, digest, detail)
    SELECT now() - make_interval(secs => $1 - n),
           CASE WHEN n % 10 = 0 THEN 'person-' || n / 10 % $4::integer
                WHEN n < $1 / 2 THEN 'old-builder'
                ELSE 'builder' END,
           CASE n % 3 WHEN 0 THEN 'version.published' WHEN 1 THEN 'version.replaced' ELSE 'run.accepted' END,
           'bundle-' || n % $2::integer || '@1.' || n / $2::integer % $3::integer || '.0',
           'sha256:' || encode(sha256(n::text::bytea), 'hex'),
           jsonb_build_object('revision', n % 7)
    FROM generate_series(1, $1::integer) AS n
"""


@dataclass(frozen=True)
class Server:
    """A registry in a process of its own."""

    backend: Backend
    pid: int
    url: str
    headers: dict[str, str]


@contextlib.asynccontextmanager
async def _server(servers: Servers, module: str = "services.registry", **settings: object) -> AsyncIterator[Server]:
    async with (
        fresh_backend(servers) as backend,
        registry_process(backend, module=module, log_level="error", **settings) as (process, port),
    ):
        token = await make_token(backend, "benchmark", "admin")
        yield Server(backend, process.pid, f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {token}"})


# --- publishing -----------------------------------------------------------------------------------------------------


@dataclass
class _Cost:
    """What publications cost, each in seconds."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


async def _compare_publishing(servers: Servers, key_file: Path, rounds: int, publications: int) -> None:
    numbers = itertools.count()
    async with (
        _server(servers, audit_key_file=key_file, audit_checkpoint_seconds=5) as audited,
        _server(servers, "benchmarks.unaudited") as unaudited,
        aiohttp.ClientSession() as session,
    ):
        ours, theirs = _Cost(), _Cost()
        postmaster = await _postmaster(audited.backend)
        for number in range(rounds + 2):
            bundles = [(slug, bundle(slug)) for slug in (f"hello-{next(numbers)}" for _ in range(publications))]
            pairs = [(audited, ours), (unaudited, theirs)]
            for server, cost in pairs if number % 2 else reversed(pairs):
                before = cpu_seconds(server.pid) + cpu_seconds_of_family(postmaster)
                elapsed = await _publish(session, server, bundles)
                await _until_sealed(server.backend)
                cpu = cpu_seconds(server.pid) + cpu_seconds_of_family(postmaster) - before
                if number > 1:  # the first rounds only warm up
                    cost.wall.append(elapsed / publications)
                    cost.cpu.append(cpu / publications)
        (events,) = await audited.backend.fetch("SELECT count(*) AS count FROM audit.leaves")
        (none,) = await unaudited.backend.fetch("SELECT count(*) AS count FROM audit.events WHERE actor = 'benchmark'")
        assert none["count"] == 0
        print(f"{events['count']} events were sealed meanwhile")
    name, against, target = "publish a bundle, 8 writers", "no audit trail", "at most 1.10"
    compare(f"{name}: time", ours.wall, theirs.wall, against=against, target=target)
    compare(f"{name}: CPU time", ours.cpu, theirs.cpu, against=against, target="none")


async def _postmaster(backend: Backend) -> int:
    connection = await asyncpg.connect(backend.database_url)
    try:
        return parent_of(connection.get_server_pid())
    finally:
        await connection.close()


async def _until_sealed(backend: Backend) -> None:
    connection = await asyncpg.connect(backend.database_url)
    try:
        async with asyncio.timeout(60):
            while await connection.fetchval("SELECT EXISTS (SELECT FROM audit.unsealed)"):  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0.2)
    finally:
        await connection.close()


async def _publish(session: aiohttp.ClientSession, server: Server, bundles: list[tuple[str, bytes]]) -> float:
    waiting = iter(bundles)

    async def write() -> None:
        for slug, body in waiting:
            url = f"{server.url}/job-bundles/{slug}/versions/1.0.0"
            async with session.put(url, data=body, headers=server.headers) as response:
                response.raise_for_status()
                await response.read()

    begun = time.perf_counter()
    await asyncio.gather(*(write() for _ in range(_WRITERS)))
    return time.perf_counter() - begun


# --- pages ----------------------------------------------------------------------------------------------------------


async def _fill(backend: Backend, events: int) -> None:
    # So that a page of whatever is asked for is full, however many events there are in all.
    spread = (200, 50, 1000) if events > _FEW else (4, 2, 2)
    connection = await asyncpg.connect(backend.database_url)
    try:
        await connection.execute(_FILL, events, *spread, timeout=1200)
        await connection.execute("VACUUM ANALYZE audit.events", timeout=600)
    finally:
        await connection.close()


async def _asked(backend: Backend) -> dict[str, tuple[trail.EventFilter, tuple[datetime, int] | None]]:
    """What is measured, by name: filters, and the event that a page begins behind."""
    (row,) = await backend.fetch(
        "SELECT id, at FROM audit.events ORDER BY id OFFSET (SELECT count(*) / 2 FROM audit.events) LIMIT 1"
    )
    middle, deep = row["at"], (row["at"], row["id"])
    wanted = trail.EventFilter
    return {
        "first page": (wanted(), None),
        "page in the middle": (wanted(), deep),
        "until the middle": (wanted(until=middle), None),
        "since the middle": (wanted(since=middle), None),
        "actor": (wanted(actor="builder"), None),
        "actor, in the middle": (wanted(actor="builder"), deep),
        "actor of long ago": (wanted(actor="old-builder"), None),
        "rare actor": (wanted(actor="person-1"), None),
        "action, until the middle": (wanted(action="run.accepted", until=middle), None),
        "a bundle": (wanted(subject="bundle-3"), None),
        "a bundle, in the middle": (wanted(subject="bundle-3"), deep),
        "a version": (wanted(subject="bundle-3@1.0.0"), None),
        "a bundle and its actor": (wanted(subject="bundle-3", actor="builder"), None),
        "the same, until the middle": (wanted(subject="bundle-3", actor="builder", until=middle), None),
        "actor, action, since the middle": (wanted(actor="builder", action="run.accepted", since=middle), None),
    }


def _query(wanted: trail.EventFilter, before: tuple[datetime, int] | None) -> dict[str, str]:
    """The query string that asks for it."""
    given = {name: getattr(wanted, name) for name in ("actor", "action", "subject", "since", "until")}
    texts = {
        name: value.isoformat() if isinstance(value, datetime) else str(value)
        for name, value in given.items()
        if value is not None
    }
    if before is not None:
        texts["cursor"] = encode_cursor((before[0] - _EPOCH) // timedelta(microseconds=1), before[1])
    return texts


async def _plan(backend: Backend, wanted: trail.EventFilter, before: tuple[datetime, int] | None) -> str:
    """How PostgreSQL reads it: kinds of scans and their indexes."""
    statement, values = trail.list_statement(wanted, before=before, limit=51)
    async with open_pool(backend.database_url, size=1, application_name="benchmark") as pool, pool.acquire() as own:
        explained = await own.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *values)
    return ", ".join(_scans(explained[0]["Plan"]))


def _scans(plan: dict[str, Any]) -> list[str]:
    own = [f"{plan['Node Type']} {plan.get('Index Name', '')}".strip()] if "Scan" in plan["Node Type"] else []
    return own + [scan for below in plan.get("Plans", []) for scan in _scans(below)]


async def _compare_pages(servers: Servers, events: int, requests: int) -> None:
    async with (
        _server(servers, audit_seal_seconds=_NEVER) as few,
        _server(servers, audit_seal_seconds=_NEVER) as many,
        aiohttp.ClientSession() as session,
    ):
        await _fill(few.backend, _FEW)
        await _fill(many.backend, events)
        asked = {server.url: await _asked(server.backend) for server in (few, many)}
        for name in asked[few.url]:
            times: dict[str, list[float]] = {few.url: [], many.url: []}
            for number in range(requests + 20):
                for server in (few, many):
                    elapsed = await _get(session, server, _query(*asked[server.url][name]))
                    if number >= 20:  # the first only warm up
                        times[server.url].append(elapsed * 1000)
            small, large = ([percentile(times[server.url], share) for share in (0.5, 0.99)] for server in (few, many))
            print(
                f"{name:32} {events} events: p50 {large[0]:6.2f} p99 {large[1]:6.2f} ms   {_FEW}: p50 {small[0]:6.2f} "
                f"p99 {small[1]:6.2f} ms   ratio p50 {large[0] / small[0]:.2f} p99 {large[1] / small[1]:.2f}   "
                f"{await _plan(many.backend, *asked[many.url][name])}"
            )


async def _get(session: aiohttp.ClientSession, server: Server, query: dict[str, str]) -> float:
    begun = time.perf_counter()
    async with session.get(f"{server.url}/audit", params=query, headers=server.headers) as response:
        response.raise_for_status()
        await response.read()
    return time.perf_counter() - begun


# --- checking -------------------------------------------------------------------------------------------------------


async def _measure_checking(servers: Servers, key_file: Path, events: int) -> None:
    for count in (events // 10, events):
        async with fresh_backend(servers) as backend:
            objects = backend.objects()
            await _fill(backend, count)
            async with open_pool(backend.database_url, size=4, application_name="benchmark") as pool:
                begun = time.perf_counter()
                await seal(pool)
                sealed = time.perf_counter() - begun
                signer = Signer.from_file(f"stowage/{backend.bucket}", key_file)
                await Checkpoints(pool, objects, signer, interval_seconds=1).sign_if_due()
            objects.close()
            begun = time.perf_counter()
            memory_mb = await asyncio.to_thread(_verify, backend, str(signer.public))
            print(
                f"{count} events: sealed {count / sealed:.0f} a second, verified "
                f"{count / (time.perf_counter() - begun):.0f} a second with {memory_mb:.0f} MB at the peak"
            )


def _verify(backend: Backend, public_key: str) -> float:
    """Run the command; its memory at the peak, in MB."""
    process = subprocess.Popen(
        [sys.executable, "-m", "services.registry", "audit-verify", "--public-key", public_key],
        env={**backend.environment("STOWAGE_REGISTRY_"), "PATH": os.environ["PATH"]},
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise RuntimeError("the audit trail is not what it was")
    return usage.ru_maxrss / 1024


# --------------------------------------------------------------------------------------------------------------------


async def _measure(servers: Servers, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="stowage-benchmark-") as directory:
        key_file = Path(directory) / "audit.pem"
        read_or_make_key(key_file)
        if "publish" in options.parts:
            await _compare_publishing(servers, key_file, options.rounds, options.publications)
        if "pages" in options.parts:
            await _compare_pages(servers, options.events, options.requests)
        if "check" in options.parts:
            await _measure_checking(servers, key_file, options.events)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--publications", type=int, default=100)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("parts", nargs="*", default=["publish", "pages", "check"], help="what to measure")
    options = parser.parse_args()
    print(machine())
    with running_servers() as servers:
        asyncio.run(_measure(servers, options))


if __name__ == "__main__":
    main()
