"""What the runner's event loop is kept from, idle and under load: `python -m benchmarks.loop_lag`.

The runner is a process of its own. A task on its loop asks to be woken every 5 ms and notes how late it was; besides,
every callback that the loop runs is timed, by the clock and by the CPU time of its thread. The lag says what callers
feel, and grows with whatever else the machine does; the CPU time of the longest callback says what is our own doing.

The load: runs of a bundle of 3,000 files that write 20,000 lines of log, 5,000 events and a result of 900 kB, between
runs of a bundle that does nothing, asked for all at once; each is polled, and its log is followed.
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import random
import tempfile
import time
from asyncio.events import Handle
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.report import machine, percentile
from libs.common.client import RunnerClient
from libs.common.log import configure_logging
from libs.common.models import RunRequest
from libs.common.web import serve_until_signalled
from services.runner.app import create_app
from services.runner.settings import RunnerSettings
from tests.backend import Backend, fresh_backend, running_servers
from tests.metrics import scrape
from tests.ports import free_port
from tests.registry.running import RunningRegistry, make_token, running_registry
from tests.runner.bundles import node, publish
from tests.servers import Servers

_SAMPLE_SECONDS = 0.005
_NOTED_SECONDS = 0.001
_SHOWN_CALLBACKS = 8
_LOUD = """
    import fs from 'node:fs';
    export function handler(context) {
      for (let n = 0; n < 20000; n++) console.log('line ' + n + ' ' + 'x'.repeat(200));
      for (let n = 0; n < 5000; n++) context.logger.info('event ' + n, { n, text: 'y'.repeat(100) });
      for (let n = 0; n < 50; n++) fs.writeFileSync(`${context.outputDir}/${n}.bin`, Buffer.alloc(100000, n));
      return { text: 'r'.repeat(900000) };
    }
"""
_QUIET = "export const handler = () => 1"


@dataclass
class Notes:
    """What was seen on the loop: (when, lag), and (when, elapsed, CPU, what) of callbacks that took a while."""

    lags: list[tuple[float, float]] = field(default_factory=list)
    callbacks: list[tuple[float, float, float, str]] = field(default_factory=list)


@contextlib.contextmanager
def _timed_callbacks(notes: Notes) -> Iterator[None]:
    run = Handle._run

    def timed(self: Handle) -> None:
        callback = self._callback  # type: ignore[attr-defined]  # gone afterwards, where a reader removes itself
        begun, cpu = time.perf_counter(), time.thread_time()
        run(self)
        elapsed = time.perf_counter() - begun
        if elapsed > _NOTED_SECONDS:
            notes.callbacks.append((time.monotonic(), elapsed, time.thread_time() - cpu, _name(callback)))

    Handle._run = timed  # type: ignore[method-assign]
    try:
        yield
    finally:
        Handle._run = run  # type: ignore[method-assign]


def _name(callback: Any) -> str:
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        coroutine: Any = owner.get_coro()
        return f"task {coroutine.__qualname__}"
    return f"{type(owner).__name__}.{getattr(callback, '__name__', callback)}"


async def _serve(settings: RunnerSettings) -> Notes:
    notes = Notes()

    async def sample() -> None:
        while True:
            asked = time.perf_counter()
            await asyncio.sleep(_SAMPLE_SECONDS)
            notes.lags.append((time.monotonic(), time.perf_counter() - asked - _SAMPLE_SECONDS))

    sampling = asyncio.create_task(sample())
    with _timed_callbacks(notes):
        await serve_until_signalled(create_app(settings), service="runner", settings=settings)
    sampling.cancel()
    return notes


def _runner(settings: dict[str, Any], parent: Connection) -> None:
    configure_logging(log_format="console", level="warning")
    parent.send(asyncio.run(_serve(RunnerSettings(**settings))))


async def _load(url: str, token: str, runs: int) -> None:
    async with RunnerClient(url, token) as client:

        async def see(bundle: str) -> None:
            run = await client.start_run(RunRequest(bundle=bundle))
            async for _ in client.lines(f"/runs/{run.id}/log", follow="true"):
                pass
            while not (run := await client.run(run.id)).state.final:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            assert run.state.value == "succeeded", run.error

        await asyncio.gather(*(see(f"{name}@latest") for name in ("loud", "quiet") * runs))


async def _until_ready(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}/readyz") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.05)


def _report(name: str, notes: Notes, begun: float, ended: float) -> None:
    lags = [lag * 1000 for at, lag in notes.lags if begun <= at <= ended]
    callbacks = [noted for noted in notes.callbacks if begun <= noted[0] <= ended]
    print(
        f"\n{name}: {ended - begun:.1f} s, {len(lags)} samples; lag p50 {percentile(lags, 0.5):.2f}  "
        f"p99 {percentile(lags, 0.99):.2f}  max {max(lags):.2f} ms"
    )
    print(f"  callbacks longer than {_NOTED_SECONDS * 1000:g} ms: {len(callbacks)}; those of most CPU time:")
    for _, elapsed, cpu, what in sorted(callbacks, key=lambda noted: -noted[2])[:_SHOWN_CALLBACKS]:
        print(f"    {cpu * 1000:7.1f} ms CPU  {elapsed * 1000:7.1f} ms elapsed  {what}")


async def _measure(backend: Backend, registry: RunningRegistry, scratch: Path, seconds: float, runs: int) -> None:
    source = random.Random(7)  # noqa: S311  # reproducible, not secret
    files = {f"lib/part-{number}.txt": source.randbytes(2000).hex() for number in range(3000)}
    await publish(registry, node(_LOUD, slug="loud", files=files), "loud")
    await publish(registry, node(_QUIET, slug="quiet"), "quiet")
    port = free_port()
    settings = {
        **backend.settings,
        "port": port,
        "registry_url": registry.url,
        "service_token": await make_token(backend, "runner", "bundles:read"),
        "scratch_dir": scratch,
    }
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_runner, args=(settings, theirs))
    process.start()
    url = f"http://127.0.0.1:{port}"
    await _until_ready(url)
    await _load(url, registry.token, 1)  # imports, connections, caches
    marks = [time.monotonic()]
    await asyncio.sleep(seconds)
    marks.append(time.monotonic())
    await _load(url, registry.token, runs)
    marks.append(time.monotonic())
    async with aiohttp.ClientSession() as session:
        reading = await scrape(session, url)
    process.terminate()
    notes: Notes = await asyncio.to_thread(ours.recv)
    await asyncio.to_thread(process.join)
    _report("idle", notes, marks[0], marks[1])
    _report(f"{2 * runs} runs", notes, marks[1], marks[2])
    buckets = reading.buckets("stowage_event_loop_lag_seconds")
    print(
        f"\n/metrics: {buckets[-1]:.0f} samples of lag, cumulative by bucket: {' '.join(f'{n:.0f}' for n in buckets)}"
    )


async def _with_backend(servers: Servers, seconds: float, runs: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        async with fresh_backend(servers) as backend, running_registry(backend) as registry:
            await _measure(backend, registry, Path(scratch) / "scratch", seconds, runs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="how long to look at the idle loop")
    parser.add_argument("--runs", type=int, default=6, help="runs of each of the two bundles")
    chosen = parser.parse_args()
    print(machine())
    configure_logging(log_format="console", level="warning")
    with running_servers() as servers:
        asyncio.run(_with_backend(servers, chosen.seconds, chosen.runs))


if __name__ == "__main__":
    main()
