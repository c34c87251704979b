"""Following a log at one runner while the one that executes the run is killed, and the run goes on elsewhere."""

import asyncio
from pathlib import Path

from libs.common.models import RunState
from tests.backend import Backend
from tests.chaos.servers import stopped
from tests.registry.running import running_registry
from tests.runner.bundles import node, publish
from tests.runner.running import OPEN, RunningRunner, runner_process

_CODE = """
    export async function handler({ run, logger }) {
      for (let i = 0; run.attempt === 1 || i < 30; i++) {
        logger(`line ${i} of attempt ${run.attempt}`);
        await new Promise((go) => setTimeout(go, 20));
      }
    }
"""
_GLIMPSE_LINES = 7


async def test_a_log_is_followed_over_the_death_of_its_runner_and_resumed_at_any_line(
    backend: Backend, tmp_path: Path
) -> None:
    async with (
        running_registry(backend) as registry,
        runner_process(backend, registry, tmp_path / "first", lease_seconds=2, **OPEN) as first,
        runner_process(backend, registry, tmp_path / "other", lease_seconds=2, **OPEN) as other,
    ):
        await publish(registry, node(_CODE))
        with stopped([other.process.pid]):
            run = await first.start()
            await first.logged(run.id, "line 10 of attempt 1")
        patient = asyncio.create_task(_follow(other, run.id, 10_000))
        restless = asyncio.create_task(_follow(other, run.id, _GLIMPSE_LINES))
        await other.logged(run.id, "line 40 of attempt 1")
        await first.kill()
        done = await other.finished(run.id)
        assert (done.state, done.attempts) == (RunState.SUCCEEDED, 2)
        log = (await other.log(run.id)).splitlines()
        # The followers go from the journal to the bucket at whatever line they are.
        assert await patient == log
        assert await restless == log
        assert await backend.fetch("SELECT FROM runner.journal") == []
        for after in (0, 1, len(log) // 2, len(log) - 1, len(log), len(log) + 1):
            assert await _read(other, run.id, after, len(log)) == log[after:]
        said = [line.partition("[logger] ")[2] for line in log if "[logger]" in line]
        lost = sum("of attempt 1" in line for line in said)
        expected = [f"line {i} of attempt 1" for i in range(lost)] + [f"line {i} of attempt 2" for i in range(30)]
        assert said == expected
        assert lost > 40


async def _follow(runner: RunningRunner, run_id: str, at_a_time: int) -> list[str]:
    """The whole log, some lines of each answer: then the connection is dropped, and another one goes on behind them."""
    lines: list[str] = []
    while True:
        piece = await _read(runner, run_id, len(lines), at_a_time)
        lines += piece
        if len(piece) < at_a_time:
            break
    return lines


async def _read(runner: RunningRunner, run_id: str, after: int, at_most: int) -> list[str]:
    lines = []
    async for line in runner.client.lines(f"/runs/{run_id}/log", after=after, follow="true"):
        lines.append(line)
        if len(lines) == at_most:
            break
    return lines
