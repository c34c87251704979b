"""What more runners bring, and what a Job of Kubernetes costs over a process: `python -m benchmarks.executors`.

First, runners as processes of this machine that share one queue, two runs at a time each: the rate at which two and
four of them get through runs that wait for a second, that do nothing, and that compute, against one; and how many
processors were busy meanwhile, with whatever: when all are, the rate can't grow any more. Then the same run as a
process and as a Job of the cluster that the environment names (as for `tests/kubernetes`), in turn: from `POST /runs`
to its end.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from benchmarks.report import compare, machine, percentile
from libs.common.models import RunState
from tests.backend import fresh_backend, running_servers
from tests.kubernetes.executor.cluster import Where, fresh_namespace
from tests.registry.running import running_registry
from tests.runner.bundles import node, publish
from tests.runner.running import RunnerProcess, RunningRunner, runner_process
from tests.servers import Servers

_NOOP = "export const handler = () => 1;"
_PAUSES = "export const handler = () => new Promise((go) => setTimeout(go, 1000));"
_COMPUTES = """
export function handler() {
  let sum = 0;
  for (let number = 0; number < 200_000_000; number++) sum = (sum + number) | 0;
  return sum;
}
"""
_WAITS = (
    "export const handler = ({ signal }) => new Promise((go) => (setInterval(() => {}, 1000), signal.onabort = go));"
)
_CONCURRENCY = 2
_PAUSE_SECONDS = 0.02
_SPAN = """
    SELECT extract(epoch FROM max(finished_at) - min(started_at))::float8 AS seconds FROM runner.runs WHERE slug = $1
"""


@dataclass(frozen=True)
class _Rate:
    """Runs per second, and how many processors were busy on average, with them or with anything else."""

    per_second: float
    processors: float


async def _rates(servers: Servers, work: Path, counts: Sequence[int], runs: int, code: str) -> dict[int, _Rate]:
    """Those of so many runners, each with a queue that is full from the start."""
    return {count: await _rate(servers, work / f"of-{count}", count, runs, code) for count in counts}


async def _rate(servers: Servers, work: Path, count: int, runs: int, code: str) -> _Rate:
    async with contextlib.AsyncExitStack() as stack:
        backend = await stack.enter_async_context(fresh_backend(servers))
        registry = await stack.enter_async_context(running_registry(backend))
        await publish(registry, node(code))
        await publish(registry, node(_WAITS, slug="waits"), slug="waits")
        await asyncio.to_thread(work.mkdir, parents=True)
        runners: list[RunnerProcess] = [
            await stack.enter_async_context(runner_process(backend, registry, work / f"{number}"))
            for number in range(count)
        ]
        first = runners[0]
        busy = [await first.start("waits@latest") for _ in range(count * _CONCURRENCY)]
        for run in busy:
            await first.in_state(run.id, "running", seconds=120)
        turns = asyncio.Semaphore(8)

        async def start() -> str:
            async with turns:
                return (await first.start()).id

        started = await asyncio.gather(*(start() for _ in range(runs)))
        begun, used = time.monotonic(), _processor_seconds()
        for run in busy:
            await first.client.cancel(run.id)
        for run_id in started:
            assert (await first.finished(run_id, seconds=600)).state is RunState.SUCCEEDED
        processors = (_processor_seconds() - used) / (time.monotonic() - begun)
        (row,) = await backend.fetch(_SPAN, "hello")
        return _Rate(runs / float(row["seconds"]), processors)


def _processor_seconds() -> float:
    """What all processors of the machine have done since it began."""
    user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


async def _more_runners(servers: Servers, work: Path, counts: Sequence[int], runs: int, rounds: int) -> None:
    for name, code, number in (
        ("that wait", _PAUSES, max(8, runs // 4)),
        ("that do nothing", _NOOP, runs),
        ("that compute", _COMPUTES, max(8, runs // 8)),
    ):
        found = [
            await _rates(servers, work / f"{name.split()[-1]}-{turn}", counts, number, code) for turn in range(rounds)
        ]
        for count in counts[1:]:
            compare(
                f"{number} runs {name}, {count} runners",
                [rates[count].per_second for rates in found],
                [rates[counts[0]].per_second for rates in found],
                against="one runner",
                target="above 1 until the processors are used",
                scale=1,
                unit="/s",
            )
        busy = ", ".join(
            f"{count}: {statistics.median(rates[count].processors for rates in found):.2f}" for count in counts
        )
        print(f"{'':38} processors busy, by the number of runners: {busy}, of {os.cpu_count()}")


async def _seconds(runner: RunningRunner) -> float:
    """From the request to the end."""
    begun = time.perf_counter()
    run = await runner.start()
    while not run.state.final:
        await asyncio.sleep(_PAUSE_SECONDS)
        run = await runner.client.run(run.id)
    if run.error is not None:
        raise RuntimeError(run.error.message)
    return time.perf_counter() - begun


async def _job_over_process(servers: Servers, work: Path, where: Where, rounds: int) -> None:
    async with fresh_namespace(where) as namespace, contextlib.AsyncExitStack() as stack:
        on_cluster: dict[str, Any] = {
            "executor": "kubernetes",
            "kubernetes_config": where.kubeconfig,
            "kubernetes_namespace": namespace.name,
            "kubernetes_image": where.image,
            "kubernetes_cpus": 0.05,
            "memory_bytes": 256 * 1024 * 1024,
            "host": where.address,
        }
        runners: list[RunningRunner] = []
        choices: tuple[tuple[str, dict[str, Any]], ...] = (("process", {}), ("job", on_cluster))
        for name, settings in choices:
            backend = await stack.enter_async_context(fresh_backend(servers))
            registry = await stack.enter_async_context(running_registry(backend))
            await publish(registry, node(_NOOP))
            runner = await stack.enter_async_context(runner_process(backend, registry, work / name, **settings))
            runners.append(runner)
        await asyncio.gather(*map(_seconds, runners))  # what is slow only once
        theirs, ours = [], []
        for _ in range(rounds):
            theirs.append(await _seconds(runners[0]))
            ours.append(await _seconds(runners[1]))
            await namespace.empty()
        compare("a run that does nothing, as a Job", ours, theirs, against="as a process", target="none")
        for name, share in (("p50", 0.5), ("p95", 0.95)):
            print(f"{'':38} {name} {percentile(ours, share) - percentile(theirs, share):+.2f} s")


def _measure(arguments: argparse.Namespace, work: Path) -> None:
    if "runners" in arguments.only:
        with running_servers() as servers:
            asyncio.run(_more_runners(servers, work, (1, 2, 4), arguments.runs, rounds=max(1, arguments.rounds // 7)))
    if "job" in arguments.only:
        if (where := asyncio.run(Where.given())) is None:
            print("no cluster was measured: set STOWAGE_TEST_KUBECONFIG and STOWAGE_TEST_RUNNER_IMAGE")
            return
        with running_servers(s3_address=where.address) as servers:
            asyncio.run(_job_over_process(servers, work, where, arguments.rounds))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--only", nargs="+", choices=["runners", "job"], default=["runners", "job"])
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    print(machine())
    with tempfile.TemporaryDirectory() as work:
        _measure(parser.parse_args(), Path(work))


if __name__ == "__main__":
    main()
