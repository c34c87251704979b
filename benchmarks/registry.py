"""What the registry costs, each pair measured in turn: `python -m benchmarks.registry`.

- Publishing 200 MB (twice that unpacked) against `boto3.put_object` of the same bytes to the same bucket, which neither
  looks into them nor keeps a record: with digest and length, so that they stream through, and with neither. And the
  memory of the registry while 2 GB are published, both ways.
- Reading a version and pages of a list, where a bundle has a million versions, against one that has a thousand.
- Resolving a version, in CPU time of the server, against a bare aiohttp handler that runs one asyncpg query.
"""

import argparse
import asyncio
import contextlib
import hashlib
import io
import json
import random
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import boto3
import zstandard
from botocore.config import Config

from benchmarks.processes import cpu_seconds
from benchmarks.report import compare, machine, percentile
from libs.common.client import RegistryClient
from libs.common.cursors import encode_cursor
from libs.common.identifiers import version_sort_key
from tests.backend import Backend, fresh_backend, running_servers
from tests.ports import free_port
from tests.registry.bundles import bundle, manifest
from tests.registry.running import make_token, registry_process
from tests.servers import Servers

_MB = 1_000_000
_MEMBER_BYTES = 1024 * 1024
_CHUNK_BYTES = 256 * 1024
_CONNECTIONS = 8
_MEMORY_TARGET_MB = 64

# Versions 1.0.0, 1.0.1, … of one bundle, all of the artifact of the version that is there; the sort key is written as
# `version_sort_key` writes it.
_FILL = """
    WITH numbers AS (
        SELECT '1.' || n / 1000 || '.' || n % 1000 AS version,
               '0011.' || lpad(length((n / 1000)::text)::text, 3, '0') || n / 1000 || '.'
               || lpad(length((n % 1000)::text)::text, 3, '0') || n % 1000 || '-~+' AS sort_key
        FROM generate_series(0, $1::integer - 1) AS n
    ), added AS (
        INSERT INTO registry.versions (bundle_id, version, sort_key, prerelease, immutable, revision)
        SELECT b.id, version, sort_key, false, false, 1
        FROM numbers, registry.bundles b
        WHERE b.slug = 'hello'
        RETURNING id
    )
    INSERT INTO registry.revisions (version_id, revision, digest, published_at, published_by)
    SELECT added.id, 1, a.digest, now(), 'benchmark'
    FROM added, registry.artifacts a
"""


@dataclass(frozen=True)
class Server:
    """A registry in a process of its own."""

    backend: Backend
    pid: int
    port: int
    token: str
    client: RegistryClient

    @property
    def headers(self) -> dict[str, str]:
        """What a request brings."""
        return {"Authorization": f"Bearer {self.token}"}


@contextlib.asynccontextmanager
async def _server(servers: Servers) -> AsyncIterator[Server]:
    async with fresh_backend(servers) as backend, registry_process(backend) as (process, port):
        token = await make_token(backend, "benchmark", "admin")
        async with RegistryClient(f"http://127.0.0.1:{port}", token) as client:
            yield Server(backend, process.pid, port, token, client)


# --- publishing -----------------------------------------------------------------------------------------------------


def _tarball(size: int, version: str) -> Iterator[bytes]:
    """A bundle of about `size` bytes in chunks: half of each file is noise, half is text."""
    source = random.Random(version)  # noqa: S311  # reproducible, not secret
    noise = source.randbytes(16 * _MEMBER_BYTES)
    text = (" ".join(f"word{source.randrange(10_000)}" for _ in range(4000)) * 100).encode()
    half = _MEMBER_BYTES // 2
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=False).chunker(chunk_size=_CHUNK_BYTES)
    yield from compressor.compress(_member("manifest.json", json.dumps(manifest("hello", version)).encode()))
    yield from compressor.compress(_member("main.py", b"def handler(context):\n    return 1\n"))
    packed = number = 0
    while packed < size:
        start = number * 7919 % (len(noise) - half)
        for chunk in compressor.compress(_member(f"part-{number}.bin", noise[start : start + half] + text[:half])):
            packed += len(chunk)
            yield chunk
        number += 1
    yield from compressor.compress(bytes(tarfile.RECORDSIZE))
    yield from compressor.finish()  # type: ignore[no-untyped-call]  # the stubs give it no return type


def _member(path: str, content: bytes) -> bytes:
    header = tarfile.TarInfo(path)
    header.size = len(content)
    return header.tobuf() + content + bytes(-len(content) % tarfile.BLOCKSIZE)


async def _chunks(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(next, chunks, b""):
        yield chunk


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), _CHUNK_BYTES):
        yield data[start : start + _CHUNK_BYTES]


async def _compare_publishing(server: Server, rounds: int) -> None:
    backend = server.backend
    bucket = boto3.client(
        "s3",
        endpoint_url=backend.s3_endpoint,
        aws_access_key_id=backend.access_key,
        aws_secret_access_key=backend.secret_key,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )
    announced, unannounced, theirs = [], [], []
    for number in range(rounds + 1):
        # Two tarballs of the same kind: what is there already is not written again.
        first, second = (b"".join(_tarball(200 * _MB, f"0.{number}.{part}")) for part in range(2))
        begun = time.perf_counter()
        digest = f"sha256:{hashlib.sha256(first).hexdigest()}"
        await server.client.publish("hello", f"0.{number}.0", _pieces(first), digest=digest, size=len(first))
        streamed = time.perf_counter()
        await asyncio.to_thread(
            bucket.put_object, Bucket=backend.bucket, Key=f"by-hand-{number}", Body=io.BytesIO(first)
        )
        put = time.perf_counter()
        await server.client.publish("hello", f"0.{number}.1", _pieces(second))
        published = time.perf_counter()
        await asyncio.to_thread(bucket.delete_object, Bucket=backend.bucket, Key=f"by-hand-{number}")
        if number:  # the first round only warms up
            announced.append(streamed - begun)
            theirs.append(put - streamed)
            unannounced.append(published - put)
    bucket.close()
    target = "at most 1.43 (0.7 of the throughput)"
    compare("publish 200 MB, digest and length given", announced, theirs, against="put_object", target=target)
    compare("publish 200 MB, nothing given", unannounced, theirs, against="put_object", target="none")


async def _measure_memory(server: Server) -> None:
    for version, is_announced in (("0.99.0", False), ("0.99.1", True)):
        known: dict[str, Any] = {}
        if is_announced:
            known = await asyncio.to_thread(_known_of, _tarball(2000 * _MB, version))
        idle = _memory_kb(server.pid, "VmRSS")
        _forget_peak(server.pid)
        _, published = await server.client.publish("hello", version, _chunks(_tarball(2000 * _MB, version)), **known)
        peak = _memory_kb(server.pid, "VmHWM")
        print(
            f"memory while {published.size / 1e9:.1f} GB are published, "
            f"{'digest and length' if is_announced else 'nothing'} given: "
            f"idle {idle / 1024:.0f} MB, peak {peak / 1024:.0f} MB"
            f"   difference {(peak - idle) / 1024:.0f} MB   target {_MEMORY_TARGET_MB}"
        )


def _known_of(chunks: Iterator[bytes]) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
    return {"digest": f"sha256:{digest.hexdigest()}", "size": size}


def _forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _memory_kb(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise LookupError(field)


# --- a million versions ---------------------------------------------------------------------------------------------


async def _fill(server: Server, versions: int) -> None:
    await server.client.publish("hello", "0.0.1", bundle("hello", "0.0.1"))
    connection = await asyncpg.connect(server.backend.database_url)
    try:
        await connection.execute(_FILL, versions, timeout=600)
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()


async def _compare_reading(few: Server, many: Server, counts: tuple[int, int], rounds: int) -> None:
    def below(number: int) -> str:
        return encode_cursor(version_sort_key(f"1.{number // 1000}.{number % 1000}"))

    def some_version(count: int) -> str:
        number = random.randrange(count)  # noqa: S311  # nothing secret about it
        return f"1.{number // 1000}.{number % 1000}"

    paths: dict[str, Callable[[int], str]] = {
        "a version": lambda count: f"/versions/{some_version(count)}",
        "latest": lambda _count: "/versions/latest",
        "first page": lambda _count: "/versions",
        "page in the middle": lambda count: f"/versions?cursor={below(count // 2)}",
        # Of the one that was there before and the 49 lowest of the others: a page of 50 on both sides.
        "last page": lambda _count: f"/versions?cursor={below(49)}",
        "the bundle": lambda _count: "",
    }
    async with aiohttp.ClientSession() as session:
        for name, path in paths.items():
            times: dict[int, list[float]] = {0: [], 1: []}
            for number in range(rounds + 20):
                for side, server in enumerate((few, many)):
                    elapsed = await _get(session, server, f"/job-bundles/hello{path(counts[side])}")
                    if number >= 20:  # the first rounds only warm up
                        times[side].append(elapsed)
            small, large = ([percentile(times[side], share) * 1000 for share in (0.5, 0.99)] for side in (0, 1))
            print(
                f"{name:20} {counts[1]} versions: p50 {large[0]:6.2f} p99 {large[1]:6.2f} ms"
                f"   {counts[0]}: p50 {small[0]:6.2f} p99 {small[1]:6.2f} ms"
                f"   ratio p50 {large[0] / small[0]:.2f} p99 {large[1] / small[1]:.2f}   target at most 2.00 (p99)"
            )


async def _get(session: aiohttp.ClientSession, server: Server, path: str) -> float:
    begun = time.perf_counter()
    async with session.get(f"http://127.0.0.1:{server.port}{path}", headers=server.headers) as response:
        response.raise_for_status()
        await response.read()
    return time.perf_counter() - begun


# --- resolving ------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _bare_handler(backend: Backend) -> AsyncIterator[tuple[int, int]]:
    """The process id and the port of `benchmarks.bare_handler`."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.bare_handler", backend.database_url, str(port)
    )
    try:
        async with asyncio.timeout(30):
            while not await _listens(port):  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0.05)
        yield process.pid, port
    finally:
        process.terminate()
        await process.wait()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def _compare_resolving(server: Server, rounds: int, requests: int) -> None:
    async with _bare_handler(server.backend) as (bare_pid, bare_port):
        ours, theirs = [], []
        for number in range(rounds + 1):
            mine = await _cpu_per_request(server.pid, lambda: _ask(server.port, server.token, requests), requests)
            other = await _cpu_per_request(bare_pid, lambda: _ask(bare_port, server.token, requests), requests)
            if number:  # the first round only warms up
                ours.append(mine)
                theirs.append(other)
    compare(
        "resolve a version, CPU of the server",
        ours,
        theirs,
        against="bare handler",
        target="at most 1.67 (0.6 of the requests per second on one core)",
    )


async def _cpu_per_request(pid: int, action: Callable[[], Awaitable[None]], requests: int) -> float:
    before = cpu_seconds(pid)
    await action()
    return (cpu_seconds(pid) - before) / requests


async def _ask(port: int, token: str, requests: int) -> None:
    """Resolve as often as that, over a few connections."""
    request = (
        "GET /job-bundles/hello/resolve?reference=1.0.7 HTTP/1.1\r\n"
        f"Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n\r\n"
    ).encode()

    async def ask() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(requests // _CONNECTIONS):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(head.decode())
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(ask() for _ in range(_CONNECTIONS)))


# --------------------------------------------------------------------------------------------------------------------


async def _measure(servers: Servers, options: argparse.Namespace) -> None:
    async with _server(servers) as one:
        if "publish" in options.parts:
            await _compare_publishing(one, options.rounds)
            await _measure_memory(one)
    async with _server(servers) as few, _server(servers) as many:
        await _fill(few, 1000)
        if "resolve" in options.parts:
            await _compare_resolving(few, options.rounds, options.requests)
        if "read" in options.parts:
            await _fill(many, options.versions)
            await _compare_reading(few, many, (1000, options.versions), options.requests)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--versions", type=int, default=1_000_000)
    parser.add_argument("parts", nargs="*", default=["publish", "resolve", "read"], help="what to measure")
    options = parser.parse_args()
    print(machine())
    with running_servers() as servers:
        asyncio.run(_measure(servers, options))


if __name__ == "__main__":
    main()
