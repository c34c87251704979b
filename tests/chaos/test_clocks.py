"""A runner whose wall clock jumps: what it decides does not depend on the time of day."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from libs.common.models import Backoff, JobDefinition, Limits, RetryOn, RetryPolicy, RunRequest, RunState
from tests.backend import Backend
from tests.registry.running import RunningRegistry, running_registry
from tests.runner.bundles import node, publish
from tests.runner.running import OPEN, RunnerProcess, runner_process

_HOUR = 3600.0
_CODE = """
    import fs from 'node:fs';
    export async function handler({ parameters, run, logger, outputDir }) {
      logger('begun');
      while (!fs.existsSync(parameters.gate)) { logger('waits'); await new Promise((go) => setTimeout(go, 50)); }
      fs.writeFileSync(`${outputDir}/a.txt`, 'a');
      if (run.attempt < (parameters.failUntil ?? 1)) throw new Error('as asked');
      return run.attempt;
    }
"""


class _Clock:
    """The wall clock of a runner."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.set(0)

    def set(self, seconds_off: float) -> None:
        """Be off by so many seconds."""
        new = self.file.with_suffix(".new")
        new.write_text(str(seconds_off))
        new.rename(self.file)


@pytest.fixture
def clock(tmp_path: Path) -> _Clock:
    """A clock that is right."""
    return _Clock(tmp_path / "clock")


@pytest.fixture
async def runner(backend: Backend, clock: _Clock, tmp_path: Path) -> AsyncIterator[RunnerProcess]:
    """A runner that looks at the clock, with a short lease, and jobs for it."""
    async with running_registry(backend) as registry:
        await publish(registry, node(_CODE))
        await _put_jobs(registry)
        async with runner_process(
            backend,
            registry,
            tmp_path / "scratch",
            module="tests.chaos.runner",
            variables={"CLOCK_FILE": str(clock.file)},
            lease_seconds=2,
            **OPEN,
        ) as running:
            yield running


async def _put_jobs(registry: RunningRegistry) -> None:
    retry = RetryPolicy(on=[RetryOn.FAILED], backoff=Backoff(kind="fixed", seconds=0.5))
    limits = Limits(timeout_seconds=60)
    await registry.client.put_job("flaky", JobDefinition(bundle="hello@latest", retry=retry, limits=limits))


@pytest.mark.parametrize("jump", [_HOUR, -_HOUR], ids=["forward", "back"])
async def test_a_clock_that_jumps_while_runs_go_ends_none_and_loses_none(
    runner: RunnerProcess, clock: _Clock, tmp_path: Path, jump: float
) -> None:
    gate = tmp_path / "gate"
    parameters = {"gate": str(gate), "failUntil": 2}
    begun = datetime.now(UTC)
    runs = [await runner.client.start_run(RunRequest(job="flaky", parameters=parameters)) for _ in range(3)]
    for run in runs[:2]:
        await runner.logged(run.id, "waits")
    for seconds_off in (jump, 0, jump):
        clock.set(seconds_off)
        for run in runs[:2]:
            await _goes_on(runner, run.id)
    gate.touch()
    for run in runs:
        done = await runner.finished(run.id)
        assert (done.state, done.result, done.attempts) == (RunState.SUCCEEDED, 2, 2), await runner.log(run.id)
        assert done.finished_at is not None
        assert begun <= done.created_at <= done.finished_at < begun + timedelta(seconds=_HOUR / 2)
        times = list(_times(await runner.log(run.id)))
        assert all(before <= after for before, after in itertools.pairwise(times))
        assert done.created_at - timedelta(seconds=1) < times[0]
        assert times[-1] < done.finished_at + timedelta(seconds=1)
        assert [output.path for output in await runner.client.outputs(run.id)] == ["a.txt"]


async def _goes_on(runner: RunnerProcess, run_id: str) -> None:
    """Wait until the run has said more, several times: so that its lease was renewed, its log stored."""
    lines = (await runner.log(run_id)).count("\n")
    async with asyncio.timeout(30):
        while (await runner.log(run_id)).count("\n") < lines + 20:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def _times(log: str) -> Iterator[datetime]:
    return (datetime.fromisoformat(line.split(" ", 1)[0]) for line in log.splitlines())
