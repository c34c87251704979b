"""A runner that is killed, or paused for longer than its lease, at each step of a run: the run ends, and ends once."""

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from libs.common.models import InputSource, Run, RunState
from tests.backend import Backend, fresh_backend
from tests.chaos.invariants import left_over
from tests.chaos.proxy import StallingProxy
from tests.chaos.servers import stopped
from tests.registry.running import RunningRegistry, running_registry
from tests.runner.bundles import node, publish
from tests.runner.running import OPEN, RunnerProcess, runner_process
from tests.servers import Servers

_CODE = """
    import fs from 'node:fs';
    export async function handler({ parameters, run, logger, outputDir }) {
      logger(`attempt ${run.attempt} begun`);
      while (run.attempt === 1 && parameters.gate && !fs.existsSync(parameters.gate)) {
        await new Promise((go) => setTimeout(go, 20));
      }
      for (let i = 0; i < 8; i++) fs.writeFileSync(`${outputDir}/${i}.txt`, `of ${run.attempt}`);
      fs.writeFileSync(`${outputDir}/big.bin`, Buffer.alloc(parameters.bigBytes ?? 0));
      logger(`attempt ${run.attempt} done`);
      return run.attempt;
    }
"""
_FILLER = random.Random(1).randbytes(3 * 1024 * 1024)  # noqa: S311  # nothing that can be compressed
_BIG = {"bigBytes": 17 * 1024 * 1024}
_LEASE_SECONDS = 2.0


@dataclass
class World:
    """Two runners: the one that stops leads its requests to S3 through the proxy, the other one goes on."""

    backend: Backend
    registry: RunningRegistry
    proxy: StallingProxy
    other: RunnerProcess
    scratch: Path
    source: Run

    @contextlib.asynccontextmanager
    async def doomed(self) -> AsyncIterator[RunnerProcess]:
        """The one that stops."""
        through = replace(self.backend, s3_endpoint=self.proxy.url)
        async with _runner(through, self.registry, self.scratch) as runner:
            yield runner


@pytest.fixture(scope="module")
async def world(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Shared by the tests of the module."""
    scratch = tmp_path_factory.mktemp("steps") / "scratch"
    async with fresh_backend(servers) as backend, running_registry(backend) as registry:
        await publish(registry, node(_CODE, files={"filler": _FILLER}))
        proxy = StallingProxy(backend.s3_endpoint)
        async with proxy.listening(), _runner(backend, registry, scratch) as other:
            yield World(backend, registry, proxy, other, scratch, await other.run())


def _runner(
    backend: Backend, registry: RunningRegistry, scratch: Path
) -> contextlib.AbstractAsyncContextManager[RunnerProcess]:
    return runner_process(
        backend, registry, scratch, module="tests.chaos.runner", lease_seconds=_LEASE_SECONDS, drain_seconds=0, **OPEN
    )


_STEPS: dict[str, tuple[bytes, int, dict[str, Any]]] = {
    "half of the bundle has come": (rb"GET /\S*/artifacts/", len(_FILLER) // 2, {}),
    "the bundle is verified, an input is missing": (rb"GET /\S*/outputs/", 0, {}),
    "the result was said, no output is stored": (rb"PUT /\S*/1/0.txt", 0, {}),
    "half of the outputs are stored": (rb"PUT /\S*/1/5.txt", 0, {}),
    "half of an output is stored": (rb"PUT /\S*partNumber=2", 0, _BIG),
    "all parts of an output are stored": (rb"POST /\S*[?]uploadId=", 0, _BIG),
    "the outputs are stored, the log is not": (rb"PUT /\S*/logs/runs/", 0, {}),
}


@pytest.mark.parametrize("harm", ["killed", "paused"])
@pytest.mark.parametrize("step", _STEPS)
async def test_a_run_ends_once_though_its_runner_stops_when(world: World, step: str, harm: str) -> None:
    pattern, after_bytes, parameters = _STEPS[step]
    async with world.doomed() as doomed:
        stall = world.proxy.stall(pattern, after_bytes=after_bytes)
        with _asleep(world.other):
            run = await _start(doomed, world, parameters)
            async with asyncio.timeout(30):
                await stall.reached.wait()
            if harm == "killed":
                await doomed.kill()
        with _asleep(doomed) if harm == "paused" else contextlib.nullcontext():
            await _assert_ended(world, run, attempts=2)
        stall.released.set()
        await _assert_nothing_left(world)
        await _assert_ended(world, run, attempts=2)


@pytest.mark.parametrize("harm", ["killed", "paused"])
@pytest.mark.parametrize("table", ["runner.attempts", "audit.events"], ids=["leases it", "ends it"])
async def test_a_run_ends_once_though_its_runner_stops_in_the_transaction_that(
    world: World, tmp_path: Path, table: str, harm: str
) -> None:
    gate = tmp_path / "gate"
    async with world.doomed() as doomed:
        with _asleep(world.other):
            if table == "audit.events":
                run = await _start(doomed, world, {"gate": str(gate)})
                await doomed.logged(run.id, "attempt 1 begun")
            async with _locked(world, table):
                if table == "runner.attempts":
                    run = await _start(doomed, world, {})
                gate.touch()
                await _until(lambda: _waits_for_lock(world))
                doomed.process.send_signal(signal.SIGKILL if harm == "killed" else signal.SIGSTOP)
        if harm == "paused":
            await asyncio.sleep(2 * _LEASE_SECONDS)  # its transaction is open all that time, and the row locked
            doomed.process.send_signal(signal.SIGCONT)
        done = await world.other.finished(run.id)
        await _assert_ended(world, run, attempts=done.attempts)
        await _assert_nothing_left(world)


async def test_outputs_are_stored_when_s3_is_back(world: World, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with world.doomed() as doomed:
        with _asleep(world.other):
            run = await _start(doomed, world, {"gate": str(gate)})
            await doomed.logged(run.id, "attempt 1 begun")
            with world.proxy.refusing():
                gate.touch()
                await _until(lambda: _refused(world, 50))  # each request is made three times
            done = await doomed.finished(run.id)
        assert (done.state, done.attempts) == (RunState.SUCCEEDED, 1)
        await _assert_ended(world, run, attempts=1)
        await _assert_nothing_left(world)


async def _refused(world: World, times: int) -> bool:
    return world.proxy.refused >= times


async def _start(runner: RunnerProcess, world: World, parameters: dict[str, Any]) -> Run:
    source = InputSource(run=world.source.id, path="1.txt")
    return await runner.start(parameters=parameters, inputs={"source": source})


def _asleep(runner: RunnerProcess) -> contextlib.AbstractContextManager[None]:
    return stopped([runner.process.pid])


async def _assert_ended(world: World, run: Run, *, attempts: int) -> None:
    """The run succeeded in that attempt, once, and what it left is that attempt's."""
    done = await world.other.finished(run.id)
    log = await world.other.log(run.id)
    assert (done.state, done.result, done.attempts) == (RunState.SUCCEEDED, attempts, attempts), log
    outputs = {output.path: output for output in await world.other.client.outputs(run.id)}
    assert sorted(outputs) == [*(f"{number}.txt" for number in range(8)), "big.bin"]
    assert await world.other.client.output(run.id, "7.txt") == f"of {attempts}".encode()
    assert outputs["big.bin"].size == run.parameters.get("bigBytes", 0)
    events = await world.other.audit(f"run/{run.id}")
    assert [event["action"] for event in events] == ["run.accepted", "run.finished"]
    lines = [line.split(" ", 2)[2] for line in log.splitlines()]
    assert lines[-3:] == [f"attempt {attempts} begun", f"attempt {attempts} done", "succeeded"]
    said = [line for line in lines if line.startswith("attempt ")]
    assert said == sorted(set(said), key=said.index) == sorted(said, key=lambda line: line.split()[1])


async def _assert_nothing_left(world: World) -> None:
    """The housekeeping removes what is nobody's."""
    await _until(lambda: _is_clean(world))
    objects = world.backend.objects()
    try:
        assert objects.abort_uploads("") == 0
    finally:
        objects.close()


async def _is_clean(world: World) -> bool:
    return await left_over(world.backend) == []


@contextlib.asynccontextmanager
async def _locked(world: World, table: str) -> AsyncIterator[None]:
    """Let nobody write to a table for as long as the context is open."""
    connection = await asyncpg.connect(world.backend.database_url)
    try:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


async def _waits_for_lock(world: World) -> bool:
    rows = await world.backend.fetch(
        "SELECT FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'stowage-runner' AND wait_event_type = 'Lock'"
    )
    return bool(rows)


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
